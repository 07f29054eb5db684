"""Proof against small changes: a unit, a "not", half a number, words left out, and marks that nobody verified."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.agent.citations import Verified, verify
from functions.agent.measuring import measures, negated, units_fit
from functions.agent.output_checks import clean
from tests.unit.passages import passage_state

LABEL = "(not proven)"
RULES = (
    "Der Resturlaub verfällt nach 5 Tagen. Die Kündigung ist nicht ohne wichtigen Grund möglich. "
    "Die Gebühr beträgt 12.500 EUR und die Frist 1,5 Tage. Mitarbeiter dürfen Urlaub nicht übertragen. "
    "Nachts sind es -5 °C. Employees may not carry over days. Der Wert 10³ gilt. Ein Rabatt von 20 % gilt. "
    "Der Umsatz lag bei 3 Millionen Euro."
)
HOURS = "The office opens at nine in the morning every weekday. It is closed on 24 December."


PASSAGES = (passage_state(1, RULES, "Ordnung", "§ 3 Fristen"), passage_state(2, HOURS, "Ordnung", "§ 3 Fristen"))
TRUE = "“The office opens at nine” [2]."


def _verify(answer: str) -> Verified:
    return verify(answer, PASSAGES, LABEL)


@pytest.mark.parametrize(
    "answer",
    [
        "Der Resturlaub verfällt nach 5 Wochen [1].",
        "Der Rabatt von 20 EUR gilt [1].",
        "Der Umsatz lag bei 3 Milliarden Euro [1].",
        "Nach 5 Wochen: „Der Resturlaub verfällt“ [1].",
        "Mitarbeiter dürfen Urlaub übertragen [1].",
        "Employees may carry over days [1].",
        "Die Kündigung ist ohne wichtigen Grund möglich [1].",
        "The office never opens at nine in the morning every weekday [2].",
        "„Die Kündigung ist … ohne wichtigen Grund möglich“ [1]",
        "„Mitarbeiter dürfen Urlaub … übertragen“ [1]",
        "„Der Resturlaub … Der Umsatz lag bei 3 Millionen Euro“ [1]",
        "„Die Gebühr beträgt 12“ [1]",
        "„500 EUR“ [1]",
        "„5 Tage“ [1]",
        "„5 °C“ [1]",
        "„Der Wert 103 gilt“ [1]",
        "Alle sind entlassen, sagt „die“ Ordnung [1].",
        "“The” [2]",
    ],
)
def test_a_claim_that_changes_a_little_proves_nothing(answer: str) -> None:
    """Another unit, a lost or added "not", a piece of a number, a quotation of nothing: no citation, a label."""
    verified = _verify(answer)
    assert verified.citations == ()
    assert LABEL in verified.text


@pytest.mark.parametrize(
    "answer",
    [
        "Der Resturlaub verfällt nach 5 Tagen [1].",
        "The Resturlaub verfällt after 5 days [1].",
        "Mitarbeiter dürfen den Urlaub nicht übertragen [1].",
        "Nein. Der Resturlaub verfällt nach 5 Tagen [1].",
        "No, the office opens at nine in the morning [2].",
        "Die Kündigung ist nicht ohne wichtigen Grund möglich [1].",
        "„Die Gebühr beträgt 12.500 EUR … 1,5 Tage“ [1]",
        "„-5 °C“ [1]",
        "„Der Wert 10³“ [1]",
        "Bei „20 %“ Rabatt [1].",
        "Ein Rabatt von 20 Prozent gilt [1].",
        "Nach § 3: „Der Resturlaub verfällt nach 5 Tagen“ [1].",
    ],
)
def test_what_says_the_same_is_proven(answer: str) -> None:
    """Other words for the same unit, a No that opens the answer, two negations that cancel each other out."""
    verified = _verify(answer)
    assert (verified.findings, len(verified.citations)) == ((), 1)


@pytest.mark.parametrize("tail", ["The fee is 900 EUR.", "900 EUR.", "Es sind 5 Wochen."])
def test_a_short_sentence_with_a_foreign_number_is_labelled(tail: str) -> None:
    """Three words are no claim by their words, but a number comes from somewhere."""
    assert _verify(f"{TRUE} {tail}").findings == ("unmarked",)


@pytest.mark.parametrize("tail", ["5 Tage.", "Closed on 24 December.", "Das gilt.", "1. So ist es."])
def test_a_short_sentence_with_a_number_of_the_passages_stays(tail: str) -> None:
    """Also one that has none, and the number of a list."""
    assert _verify(f"{TRUE} {tail}").findings == ()


@pytest.mark.parametrize(
    "mark", ["[2, 1]", "[2,1]", "[1; 2]", "[1-2]", "[1–2]", "【2】", "【2†source】", "[^2]", "[٢]", "[２]"]
)
def test_marks_are_read_as_models_write_them(mark: str) -> None:
    """Lists, ranges and other brackets: what is proven gets its own number, and none of the model's stays."""
    verified = _verify(f"“The office opens at nine” {mark}.")
    assert verified.text == "“The office opens at nine” [1]."
    assert [citation["passage"] for citation in verified.citations] == [2]


@pytest.mark.parametrize(
    "pieces",
    [
        "[1\u200b]",
        "[<b>1</b>]",
        "[\u202e1]",
        "[![](x)1]",
        "[<b>[</b>1]",
        "[\ue0001\ue001]",
        "\ue0001\ue001",
        "[1\u200b](x)",
    ],
    ids=ascii,
)
def test_no_mark_is_put_together_behind_the_back_of_verification(pieces: str) -> None:
    """What reads [1] only after cleaning has no citation behind it; the verified mark stays."""
    told = clean(f"“The office opens at nine” [1]. Pay at once {pieces}.")
    assert told.count("[1]") == 1
    assert "nine” [1]." in told
    assert "\ue000" not in told


@given(st.text(st.sampled_from("[]0123 <b>/\u200b\ue000\ue001()!x.\n"), max_size=40))
def test_cleaning_never_makes_a_mark(text: str) -> None:
    """Whatever stands around: every [n] of the result stood there before."""
    from re import findall

    before = findall(r"\[\d{1,3}\]", text.replace("\ue000", "").replace("\ue001", ""))
    assert len(findall(r"\[\d{1,3}\]", clean(text))) <= len(before)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("30 Tage und 5 %", {("30", "day"), ("5", "percent")}),
        ("€ 1.000, 1,000 EUR, $5", {("1000", "euro"), ("5", "dollar")}),
        ("12-Monats-Frist, 6 Monate", {("6", "month"), ("12", "month")}),
        ("500 operating hours", set()),
        ("20 m² bei 21 °C", {("20", "m2"), ("21", "celsius")}),
        ("5 Häuser", set()),
    ],
)
def test_numbers_keep_their_units(text: str, found: set[tuple[str, str]]) -> None:
    """German and English names of a unit are one."""
    assert measures(text) == found


def test_days_may_be_meant_generally() -> None:
    """30 days of 30 working days is said less exactly, not wrongly; weekdays are others."""
    assert units_fit("30 Tage", "30 Arbeitstage")
    assert not units_fit("30 Werktage", "30 Arbeitstage")
    assert units_fit("30 Wochen", "30 Teile und 4 Tage")


@pytest.mark.parametrize(
    ("text", "denies"),
    [
        ("Das geht nicht.", True),
        ("Es gibt keinen Anspruch.", True),
        ("It doesn't apply.", True),
        ("It doesn’t apply.", True),
        ("Das gilt nicht nur hier.", False),
        ("Not without a reason.", False),
        ("No. 5 applies.", False),
        ("No, it applies.", False),
        ("No leave is granted.", True),
        ("Notare und Knoten.", False),
    ],
)
def test_a_sentence_denies_or_not(text: str, denies: bool) -> None:
    """Words that deny, and those that only look so."""
    assert negated(text) is denies
