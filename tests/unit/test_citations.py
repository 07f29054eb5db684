"""Proof: what an answer quotes stands in the passage it cites, or the answer says that it does not."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.agent.citations import Verified, find_quote, foreign_language, placed, verify
from functions.agent.state import PassageState
from tests.unit.passages import passage_state

LABEL = "(nicht belegt)"

URLAUB = (
    "Der Jahresurlaub beträgt 30 Arbeitstage. Im Eintrittsjahr besteht Anspruch auf ein Zwölftel je vollem Monat. "
    "Der Antrag ist bis zum 31. März des Folgejahres zu stellen. Das „alte“ Recht gilt fort.\n\n"
    "Der Zuschuss beträgt 1.250,50 Euro, der Faktor 2,5. Beginn ist um 12.30 Uhr."
)
PUMP = (
    "The pump must be serviced every 500 operating hours. Never open the housing while the rotor turns. "
    'Use a torque of 15 Nm and a 5 mm key. Mount the 7" pipe first. See „Annex. '
    "The warranty ends after 24 months."
)


PASSAGES = (passage_state(1, URLAUB, "Urlaubsordnung", "§ 3 Dauer"), passage_state(2, PUMP, "Pump manual"))


def _verify(answer: str, passages: tuple[PassageState, ...] = PASSAGES) -> Verified:
    return verify(answer, passages, LABEL)


def _is_proven(answer: str) -> bool:
    verified = _verify(answer)
    for citation in verified.citations:
        text = PASSAGES[citation["passage"] - 1]["text"]
        assert text[citation["start"] : citation["end"]] == citation["quote"]
    assert (LABEL in verified.text) is (verified.unproven > 0)
    return verified.unproven == 0 and bool(verified.citations)


@pytest.mark.parametrize(
    "answer",
    [
        "„Der Jahresurlaub beträgt 30 Arbeitstage.“ [1]",
        '"Der Jahresurlaub beträgt 30 Arbeitstage." [1]',
        "“Der Jahresurlaub beträgt 30 Arbeitstage.” [1]",
        "»Der Jahresurlaub beträgt 30 Arbeitstage.« [1]",
        "«Der Jahresurlaub beträgt 30 Arbeitstage.» [1]",
        "„Der Jahresurlaub beträgt 30 Arbeitstage.“[1]",
        '„Der Jahresurlaub beträgt 30 Arbeitstage." [1]',
        "“Der Jahresurlaub beträgt 30 Arbeitstage.“ [1]",
        "Laut Ordnung „beträgt 30 Arbeitstage“ der Urlaub [1].",
        "„der jahresurlaub BETRÄGT 30 arbeitstage“ [1]",
        "„Der  Jahresurlaub\n beträgt\u00a030 Arbeitstage“ [1]",
        "„Der Jahres\u00adurlaub beträgt 30 Arbeitstage“ [1]",
        "„Der Jahres-\nurlaub beträgt 30 Arbeitstage“ [1]",
        "„Der Jahresurlaub betra\u0308gt 30 Arbeitstage“ [1]",
        "„Der Jahresurlaub … ein Zwölftel je vollem Monat“ [1]",
        "„Der Jahresurlaub [...] 30 Arbeitstage“ [1]",
        "„… ein Zwölftel je vollem Monat …“ [1]",
        "Sagt die Ordnung „beträgt 30“ [2][1]",
        "„Das „alte“ Recht gilt fort“ [1]",
        '„Das "alte" Recht gilt fort“ [1]',
        "“Das “alte” Recht gilt fort” [1]",
        "Nach § 3 „beträgt“ der Urlaub „30 Arbeitstage“ [1]",
        'It "must be serviced every 500 operating hours," the manual says [2].',
        'Use "15 Nm" [2].',
        '"Mount the 7" pipe first." [2]',
        "„See „Annex.“ [2]",
    ],
)
def test_a_true_quotation_is_proven(answer: str) -> None:
    """Marks, case, white space, division, composition of umlauts and left-out words are forgiven; words are not."""
    assert _is_proven(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "„Der Jahresurlaub beträgt 31 Arbeitstage.“ [1]",
        "„Der Jahresurlaub beträgt 3 Arbeitstage“ [1]",
        "„Der Jahresurlaub beträgt 0 Arbeitstage“ [1]",
        "„Der Jahresurlaub betragt 30 Arbeitstage“ [1]",
        "„Der Jahresurlaub beträgt 30 Werktage“ [1]",
        "„Der Jahresurlaub beträgt nicht 30 Arbeitstage“ [1]",
        "„beträgt 30 Arbeitstag“ [1]",
        "„ahresurlaub beträgt“ [1]",
        "„30 Arbeitstage beträgt der Jahresurlaub“ [1]",
        "„ein Zwölftel … Der Jahresurlaub“ [1]",
        "„beträgt 30 Arbeitstage“ und „beträgt 40 Arbeitstage“ [1]",
        "„Das „neue“ Recht gilt fort“ [1]",
        '„Das "neue" Recht gilt fort“ [1]',
        "“Das “neue” Recht gilt fort” [1]",
        "„Nur „alte“ Recht gilt fort“ [1]",
        'Es ist "40" und "beträgt 30 Arbeitstage" [1]',
        "Es sind 99 Tage: „Der Jahresurlaub“ [1]",
        'Use "5 Nm" [2].',
        '"Mount the 6" pipe first." [2]',
        "„Read „Annex.“ [1]",
        'The warranty "ends after 36 months" [2].',
        'The pump "must be serviced every 500 operating hours" [1].',
        "„…“ [1]",
        "„ “ [1]",
        "„---“ [1]",
    ],
)
def test_a_false_quotation_is_labelled(answer: str) -> None:
    """One altered number, word, order or passage is enough; the mark goes, the label comes."""
    verified = _verify(answer)
    assert not _is_proven(answer)
    assert verified.citations == ()
    assert "[" not in verified.text
    assert LABEL in verified.text


@pytest.mark.parametrize(
    "answer",
    [
        "Der Jahresurlaub beträgt 30 Arbeitstage [1].",
        "Pro Jahr beträgt der Jahresurlaub 30 Arbeitstage [1].",
        "Der Antrag ist bis zum 31. März zu stellen [1].",
        "Der Zuschuss beträgt 1.250,50 Euro [1].",
        "The Zuschuss beträgt 1,250.50 Euro [1].",
        "Beginn ist um 12:30 Uhr [1].",
        "1. Der Jahresurlaub beträgt 30 Arbeitstage [1].",
        "2) The warranty ends after 24 months [2].",
        "31. März des Folgejahres: Antrag [1].",
        "- The pump must be serviced every 500 hours [2].",
        "The pump needs service every 500 operating hours; the pump must [2].",
    ],
)
def test_a_close_paraphrase_is_proven_by_its_sentence(answer: str) -> None:
    """Without quotation marks one sentence must carry the words and every number."""
    assert _is_proven(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Der Jahresurlaub beträgt 28 Arbeitstage [1].",
        "Der Jahresurlaub beträgt 30 oder 31 Arbeitstage [1].",
        "Der Antrag ist bis zum 30. März zu stellen [1].",
        "30. März des Folgejahres: Antrag [1].",
        "Der Faktor ist 5,2 [1].",
        "Der Zuschuss beträgt 12.505,0 Euro [1].",
        "Beginn ist um 30.12 Uhr [1].",
        "Die Kantine öffnet mittags und abends [1].",
        "Der Jahresurlaub endet nach 24 Monaten [1].",
        "The pump must be serviced every 24 operating hours [2].",
        "Ja [1].",
        "[1]",
    ],
)
def test_a_claim_that_no_sentence_carries_is_labelled(answer: str) -> None:
    """Numbers of another sentence, swapped digits and foreign statements prove nothing."""
    assert not _is_proven(answer)


def test_every_claim_is_judged_by_its_own_marks() -> None:
    """A false claim between two true ones is labelled, and the numbers of the citations close up."""
    verified = _verify(
        'The warranty "ends after 24 months" [2]. „Der Jahresurlaub beträgt 60 Arbeitstage“ [1]. '
        "„Das „alte“ Recht gilt fort“ [1]!"
    )
    assert verified.text == (
        f'The warranty "ends after 24 months" [1]. „Der Jahresurlaub beträgt 60 Arbeitstage“ {LABEL}. '
        "„Das „alte“ Recht gilt fort“ [2]!"
    )
    assert verified.unproven == 1
    assert [(c["number"], c["passage"], c["quote"]) for c in verified.citations] == [
        (1, 2, "ends after 24 months"),
        (2, 1, "Das „alte“ Recht gilt fort"),
    ]


def test_of_several_marks_only_the_true_ones_stay() -> None:
    """[1][2] at one claim: the passage that proves it is cited, the other is not."""
    verified = _verify("The warranty “ends after 24 months” [1] [2][9].")
    assert verified.text == "The warranty “ends after 24 months” [1]."
    assert [c["passage"] for c in verified.citations] == [2]
    assert verified.unproven == 0


def test_the_same_place_has_one_number() -> None:
    """Citing the same words twice is one citation, shown twice."""
    verified = _verify("“24 months” [2]. Again: “24 months” [2][2].")
    assert verified.text == "“24 months” [1]. Again: “24 months” [1]."
    assert len(verified.citations) == 1


@pytest.mark.parametrize("mark", ["[0]", "[3]", "[999]", "[3][0]"])
def test_marks_out_of_range_prove_nothing(mark: str) -> None:
    """A passage that was not given cannot be cited."""
    verified = _verify(f"„Der Jahresurlaub beträgt 30 Arbeitstage“ {mark}.")
    assert verified == Verified(f"„Der Jahresurlaub beträgt 30 Arbeitstage“ {LABEL}.", (), 1, ("wrong-number",))


def test_an_answer_without_marks_is_not_proven() -> None:
    """However true it is: without a citation nobody can check it."""
    verified = _verify("Der Jahresurlaub beträgt 30 Arbeitstage.")
    assert verified == Verified(f"Der Jahresurlaub beträgt 30 Arbeitstage. {LABEL}", (), 1, ("unmarked",))


@pytest.mark.parametrize("answer", ["", " \n ", ".", "—"])
def test_an_answer_that_says_nothing_needs_no_proof(answer: str) -> None:
    """No words, no claim, no label."""
    assert _verify(answer) == Verified(answer.strip(), (), 0)


def test_without_passages_nothing_is_proven() -> None:
    """The model cites from memory: all labels, no citations."""
    verified = _verify("Es sind 30 Tage [1]. Und 2 mehr [2].", ())
    assert (verified.citations, verified.unproven) == ((), 2)


def test_a_citation_shows_the_passages_own_words() -> None:
    """What the reader sees highlighted is the document's spelling, not the model's."""
    text = "Die Vor-\naussetzungen für  Voll-\nund Teil\u00adzeit sind Ma\u00dfe."
    for quote in (
        "voraussetzungen für voll- und TEILZEIT",
        "Voraussetzungen … MASSE",
        "Vor- aussetzungen für Voll- und",
    ):
        place = find_quote(quote, text)
        assert place is not None, quote
        assert text[slice(*place)].startswith("Vor-\naussetzungen")
    assert find_quote("Voll", text) is None or text[slice(*(find_quote("Voll", text) or ()))] == "Voll"


def test_a_quotation_is_found_where_it_stands_as_words() -> None:
    """“5 days” is not in “15 days”; the later true place is found."""
    text = "15 days here, 5 days there."
    place = find_quote("5 days", text)
    assert place is not None
    assert text[slice(*place)] == "5 days"
    assert place[0] == 14


texts = st.text(st.sampled_from('ab 1.,„“”"»«[]…-\n\u00adßÄ\u0308'), max_size=60)


@given(texts, texts)
def test_any_answer_gets_citations_that_are_true(answer: str, passage: str) -> None:
    """Whatever the model writes: each citation is a slice of its passage, numbers are 1..n, nothing crashes."""
    verified = verify(answer + "[1]" + answer, [passage_state(1, passage)], LABEL)
    assert [c["number"] for c in verified.citations] == list(range(1, len(verified.citations) + 1))
    for citation in verified.citations:
        assert citation["quote"]
        assert passage[citation["start"] : citation["end"]] == citation["quote"]


@given(st.text(min_size=1, max_size=80), st.data())
def test_any_slice_between_spaces_is_found(text: str, data: st.DataObject) -> None:
    """Quoting a passage word for word is always proven."""
    words = text.split()
    if not words:
        return
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, len(words) - 1))
    quote = " ".join(words[first : last + 1])
    if any(mark in quote for mark in ("…", "...")) or not any(c.isalnum() for c in quote):
        return
    assert find_quote(quote, text) is not None


@pytest.mark.parametrize(
    "piece",
    [" ", "\n", "„", "“", '"', "„a", "„a„b“", "“a“", '"a" [1] ', "«a»«", "a [1]", "[1]", "[1] ", "[", "1", "1.", "1.1,",
     "…", "... ", "- ", "a-\n", "1. \n", ". A", "„a“", "ß\u0308"],
    ids=repr,
)  # fmt: skip
def test_ten_thousand_characters_take_linear_time(piece: str) -> None:
    """No answer, however strange, keeps the agent busy: twice the length costs about twice the time."""

    def seconds(length: int) -> float:
        answer = (piece * length)[:length] + "“30 Arbeitstage [1]"
        start = time.process_time()
        _verify(answer)
        return time.process_time() - start

    seconds(1000)
    assert seconds(10_000) < 1
    assert seconds(20_000) < 2


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        ("„Der Jahresurlaub beträgt 40 Arbeitstage“ [1].", "altered-number"),
        ("Der Jahresurlaub beträgt 40 Arbeitstage [1].", "altered-number"),
        ("§ 9 sagt: „Der Jahresurlaub beträgt 30 Arbeitstage“ und das 17 Mal [1].", "altered-number"),
        ("„Alle Beschäftigten erhalten einen Dienstwagen“ [1].", "invented"),
        ("„Der Jahresurlaub beträgt 30 Never open the housing“ [1].", "mixed-sources"),
        ("„Der Jahresurlaub beträgt 30 Arbeitstage“ [2].", "wrong-number"),
        ("„Der Jahresurlaub beträgt 30 Arbeitstage“ [8].", "wrong-number"),
        ("The pump must be serviced every 500 operating hours [1].", "wrong-number"),
        ("Die Kantine bietet vegetarische Gerichte [1].", "unsupported"),
        ("Die Kantine bietet vegetarische Gerichte.", "unmarked"),
        ("„Der Jahresurlaub beträgt 30 Arbeitstage“ [1]. Die Kantine bietet vegetarische Gerichte.", "unmarked"),
        ("Die Kantine bietet vegetarische Gerichte. Der Jahresurlaub beträgt 30 Arbeitstage [1].", "unmarked"),
    ],
)
def test_what_is_wrong_with_a_claim_is_named(answer: str, finding: str) -> None:
    """Invented, altered number, mixed sources, wrong [n], unsupported, no mark: labelled, and said which it was."""
    verified = _verify(answer)
    assert verified.findings == (finding,)
    assert LABEL in verified.text


def test_a_claim_may_rest_on_two_sources() -> None:
    """Each quotation stands in one of the cited passages; both are cited."""
    verified = _verify("„Der Jahresurlaub beträgt 30 Arbeitstage“, but “24 months” of warranty [1][2].")
    assert verified.findings == ()
    assert [citation["passage"] for citation in verified.citations] == [1, 2]


def test_sentences_that_are_true_need_no_mark_beside_others() -> None:
    """Beside proven claims a sentence that a passage carries stays as it is; so do questions and lead-ins."""
    answer = (
        "Dazu steht Folgendes:\n„Der Jahresurlaub beträgt 30 Arbeitstage“ [1]. Der Faktor beträgt 2,5 beim Zuschuss?"
    )
    verified = _verify(answer)
    assert verified.findings == ()
    assert verified.text == answer


def test_the_result_of_a_tool_proves_and_is_named() -> None:
    """It is no document: the claim keeps its proof, and no citation opens."""
    result = passage_state(3, "<tool_result>60</tool_result>", "calculate") | {"chunk_id": "", "tool": "calculate"}
    verified = verify("Das Ergebnis ist 60 [3]. Das Ergebnis ist 61 [3].", (*PASSAGES, result), LABEL)
    assert verified.text == f"Das Ergebnis ist 60 (calculate). Das Ergebnis ist 61 {LABEL}."
    assert (verified.results, verified.citations) == (1, ())


@pytest.mark.parametrize(
    ("draft", "language", "foreign"),
    [
        ("Employees have a right to this: „30 Arbeitstage Urlaub im Jahr“ [1].", "de", True),
        ("Die Beschäftigten haben ein Recht: “30 days of leave and more” [1].", "de", False),
        ("„30 Arbeitstage Urlaub im Jahr“ [1].", "en", False),
        ("30 [1].", "de", False),
    ],
)
def test_the_language_of_an_answer_is_that_of_its_own_words(draft: str, language: str, foreign: bool) -> None:
    """What it quotes is the document's; too few words tell nothing."""
    assert foreign_language(draft, language) is foreign


def test_a_quotation_in_a_widened_passage_is_cited_from_its_chunk() -> None:
    """Offsets count in the chunk that has most of it, and the quotation ends where the chunk does."""
    text = "Erster Absatz hier. Zweiter Absatz dort."
    passage = passage_state(1, text)
    passage["chunk_id"] = "b"
    passage["parts"] = [
        {"chunk_id": "a", "start": 0, "end": 19, "heading_path": ["A"], "page_starts": [[1, 0]]},
        {"chunk_id": "b", "start": 20, "end": 40, "heading_path": ["B"], "page_starts": [[2, 0]]},
    ]
    found = placed(passage, 20, 34)
    assert (found.chunk_id, found.start, found.end, found.quote, found.page) == ("b", 0, 14, "Zweiter Absatz", 2)
    across = placed(passage, 7, 27)
    assert (across.chunk_id, across.quote, across.heading_path) == ("a", "Absatz hier.", ("A",))
