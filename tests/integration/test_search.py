"""Search finds the right passage, only for those who may see it, whatever is asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from shared.database import operator_session, platform_session, tenant_session
from shared.documents.ending import withdraw
from shared.errors import PermanentError
from shared.events import Access, DocumentWithdrawn
from shared.fakes import FakeBus, hashed_vector
from shared.retrieval.passages import Passage
from shared.retrieval.questions import Filters
from shared.retrieval.ranking import lexical_weight
from shared.retrieval.search import search
from shared.retrieval.spaces import active_space
from shared.tenants.directory import Principal, add_member, add_to_group, memberships
from tests.integration.search_material import explained, index, titles


@pytest.fixture(autouse=True)
def _bus(bus: FakeBus) -> None:
    """What is published goes nowhere."""


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("Die Kündigung erfolgt schriftlich.", "Kuendigung"),
        ("Die Kuendigung erfolgt schriftlich.", "Kündigung"),
        ("Die Straßenverkehrsordnung gilt.", "Strassenverkehrsordnung"),
        ("Im Café gilt Rauchverbot.", "cafe"),
        ("Der Mindesturlaubsanspruch beträgt 24 Werktage.", "Mindesturlaub"),
        ("Der Resturlaub verfällt im März.", "Urlaub"),
        ("Jeder Arbeitnehmer hat Urlaub.", "Urlaubsdauer"),
        ("Antrag an Frau Wojciechowska richten.", "Wojchiechowska"),
        ("Es gilt die Verordnung (EU) 2016/679.", "2016/679"),
        ("Siehe § 15 Abs. 3 BGB.", "§ 15 BGB"),
    ],
    ids=["ae for ä", "ä for ae", "ss for ß", "accent", "compound front", "compound end", "part", "typo", "number", "§"],
)
def test_words_are_found_however_they_are_spelled(tenant: Principal, stored: str, asked: str) -> None:
    """Umlauts, accents, compounds, typing errors and numbers, by full text alone."""
    index(tenant, "right", stored)
    index(tenant, "wrong", "Völlig andere Sätze über Gartenbau und Wetter.")
    assert titles(tenant, asked, lexical_only=True)[:1] == ["right"]


def test_a_heading_is_searched_with_its_text(tenant: Principal) -> None:
    """A section is found by what stands above it."""
    index(tenant, "right", "Er beträgt 24 Werktage.", headings=("Bundesurlaubsgesetz (BUrlG)", "§ 3 Dauer"))
    assert titles(tenant, "BUrlG Dauer", lexical_only=True) == ["right"]


def test_rare_words_weigh_more_than_common_ones(tenant: Principal) -> None:
    """Inverse document frequency: the passage with the rare word wins over those with the common one."""
    for number in range(8):
        index(tenant, f"common-{number}", f"Vertrag Vertrag Vertrag Nummer {number}.")
    index(tenant, "right", "Im Vertrag steht Schlangenzüchter.")
    assert titles(tenant, "Vertrag Schlangenzüchter", lexical_only=True)[0] == "right"


def test_a_word_that_comes_often_counts_more(tenant: Principal) -> None:
    """Once, twice, three times, five times and more are told apart, among chunks of one length."""
    others = ["Gebühr", "Termin", "Antrag", "Frist", "Zahlung", "Nachweis"]
    for often in (1, 2, 3, 5):
        index(tenant, f"{often} times", " ".join(["Vertrag"] * often + others[: 6 - often]))
    index(tenant, "never", " ".join(others))
    assert titles(tenant, "Vertrag", lexical_only=True) == ["5 times", "3 times", "2 times", "1 times"]


def test_a_question_of_keywords_is_about_words(tenant: Principal) -> None:
    """Without function words BM25 weighs twice as much beside the cosine."""
    index(tenant, "d", "Urlaub im Betrieb.")
    with tenant_session(tenant.tenant_id) as session:
        weight = lexical_weight(active_space(session, tenant.tenant_id))
    for question, factor in (("Urlaub Betrieb", 2.0), ("Wie ist der Urlaub im Betrieb?", 1.0)):
        (found,) = explained(tenant, question).passages
        assert found.bm25 > 0
        assert found.score == pytest.approx(found.similarity + factor * weight * found.bm25)


def test_a_german_function_word_is_no_english_search_word(tenant: Principal) -> None:
    """“die” and “war” of a German question do not find English passages about dying and war."""
    index(tenant, "wrong", "They die in a war that was long.", language="en")
    assert titles(tenant, "Wie ist die Regel und was war der Grund für den Urlaub?", lexical_only=True) == []


def test_withdrawn_and_superseded_never_appear(tenant: Principal) -> None:
    """The old version of a document and a withdrawn document are gone from both channels at once."""
    index(tenant, "handbook", "Alt: Passwort Blaubeere.")
    index(tenant, "handbook", "Neu: Passwort Himbeere.", version=2)
    index(tenant, "secret", "Passwort Stachelbeere.")
    with tenant_session(tenant.tenant_id) as session:
        gone = DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="secret", source_version=1)
        withdraw(session, gone, "upstream")
    found = explained(tenant, "Passwort Blaubeere Stachelbeere Himbeere").passages
    assert [p.text for p in found] == ["Neu: Passwort Himbeere."]


def test_access_is_decided_before_the_limit(tenant: Principal) -> None:
    """A hundred better passages that a member may not see do not crowd out the one she may."""
    index(tenant, "hidden", *(f"Gehalt Gehalt Nummer {n}" for n in range(120)), access=Access(groups=("board",)))
    index(tenant, "open", "Das Gehalt kommt am Monatsende.")
    with operator_session() as operator:
        member = add_member(operator, tenant.tenant_id, "m@x.example", name="m")
        board = add_member(operator, tenant.tenant_id, "b@x.example", name="b")
        add_to_group(operator, tenant.tenant_id, "board", board)
    (someone,) = [p for p in memberships("m@x.example") if p.member_id == member]
    (director,) = [p for p in memberships("b@x.example") if p.member_id == board]
    assert titles(someone, "Gehalt") == ["open"]
    assert titles(director, "Gehalt")[0] == "hidden"


def test_filters_narrow_both_channels(tenant: Principal) -> None:
    """Collection, source, language, metadata and time, each alone."""
    index(tenant, "de", "Urlaub im Handbuch", collection="hr", metadata={"year": "2025"})
    index(tenant, "en", "Urlaub in the handbook", language="en")
    now = datetime.now(UTC)
    assert titles(tenant, "Urlaub", Filters(collections=("hr",))) == ["de"]
    assert titles(tenant, "Urlaub", Filters(languages=("en",))) == ["en"]
    assert titles(tenant, "Urlaub", Filters(metadata={"year": "2025"})) == ["de"]
    assert titles(tenant, "Urlaub", Filters(sources=("web",))) == []
    assert titles(tenant, "Urlaub", Filters(since=now + timedelta(hours=1))) == []
    assert sorted(titles(tenant, "Urlaub", Filters(until=now + timedelta(hours=1)))) == ["de", "en"]


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("", "empty-question"),
        ("  \n", "empty-question"),
        ("?!… — '\"%_\\&|!():*", "empty-question"),
        ("x" * 100_000, "question-too-long"),
        ("a\x00b", "bad-characters"),
        ("a\ud800b", "bad-characters"),
    ],
    ids=["empty", "blank", "punctuation", "100,000 characters", "NUL", "surrogate"],
)
def test_what_cannot_be_asked_is_a_typed_error(tenant: Principal, question: str, reason: str) -> None:
    """No question is an accident of the database."""
    with tenant_session(tenant.tenant_id) as session:
        space = active_space(session, tenant.tenant_id)
        with pytest.raises(PermanentError) as caught:
            search(session, tenant.tenant_id, tenant.member_id, space, question, [1.0] * space.dimension)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "question",
    [
        "a & b | !c <-> (d:*",
        "'; drop table rag.chunks; --",
        "100% _x_ \\ \\' %s :tenant $1 {x}",
        "🙂 a",
        "ä" * 7_999,
        "1",
    ],
)
def test_metacharacters_are_only_characters(tenant: Principal, question: str) -> None:
    """Neither SQL nor tsquery nor the driver reads anything into a question."""
    index(tenant, "there", "a b c d drop table 100 tenant x")
    assert explained(tenant, question).diagnostics.fused <= 1


@pytest.mark.parametrize(
    "vector",
    [lambda n: [1.0] * (n + 1), lambda n: [math.nan] * n, lambda n: [math.inf] * n, lambda n: [0.0] * n, lambda n: []],
    ids=["dimension", "NaN", "infinity", "zeros", "empty"],
)
def test_a_vector_that_does_not_fit_is_a_typed_error(tenant: Principal, vector: Callable[[int], list[float]]) -> None:
    """Wrong dimension and numbers without meaning never reach pgvector."""
    with tenant_session(tenant.tenant_id) as session:
        space = active_space(session, tenant.tenant_id)
        with pytest.raises(PermanentError) as caught:
            search(session, tenant.tenant_id, tenant.member_id, space, "Urlaub", vector(space.dimension))
    assert caught.value.reason == "wrong-vector"


def test_another_tenants_collection_is_as_unknown_as_none(make_tenant: Callable[..., Principal]) -> None:
    """The error for a foreign collection and for one that never was are the same words."""
    one, two = make_tenant(), make_tenant()
    index(one, "x", "Urlaub", collection="board-minutes")
    errors = []
    for name in ("board-minutes", "no-such-thing"):
        with pytest.raises(PermanentError) as caught:
            explained(two, "Urlaub", Filters(collections=(name,)))
        errors.append((caught.value.reason, caught.value.message, caught.value.next_action))
    assert errors[0] == errors[1]
    assert errors[0][0] == "unknown-collection"


def test_a_foreign_member_or_space_finds_nothing_of_others(make_tenant: Callable[..., Principal]) -> None:
    """Ids of another tenant give no rows and no hint."""
    one, two = make_tenant(), make_tenant()
    index(one, "x", "Urlaub")
    with tenant_session(two.tenant_id) as session:
        space = active_space(session, two.tenant_id)
        vector = hashed_vector("Urlaub", space.dimension)
        assert search(session, one.tenant_id, one.member_id, space, "Urlaub", vector) == []
        assert search(session, two.tenant_id, one.member_id, space, "Urlaub", vector) == []


def test_the_definer_function_answers_only_for_the_bound_tenant(make_tenant: Callable[..., Principal]) -> None:
    """Called by hand without a tenant it returns nothing; with one, only that tenant's chunks."""
    one, two = make_tenant(), make_tenant()
    index(one, "x", "Schlangenzüchter")
    call = text(
        "select count(*) from rag.lexical_candidates('Schlangenzüchter', 'de', 1, '{}', '{}', '{}', '{}', '{}', "
        "null, null, null, '{}', 50)"
    )
    with platform_session() as session:
        assert session.execute(call).scalar() == 0
    with tenant_session(two.tenant_id) as session:
        assert session.execute(call).scalar() == 0
    with tenant_session(one.tenant_id) as session:
        assert session.execute(call).scalar() == 1


def test_results_do_not_depend_on_another_tenants_corpus(make_tenant: Callable[..., Principal]) -> None:
    """Passages, scores and counts are the same before and after a neighbour fills the same words in."""
    one, two = make_tenant(), make_tenant()
    words = ["Urlaub", "Gehalt", "Vertrag", "Kündigung", "Mindesturlaub", "Arbeitszeit"]
    for number, word in enumerate(words):
        index(one, f"d{number}", f"{word} und {words[number - 1]} im Betrieb")

    def look() -> list[tuple[list[Passage], dict[str, object]]]:
        found = []
        for question in [*words, "Urlab", "Wie lange ist der Urlaub?"]:
            result = explained(one, question)
            counts = {
                name: getattr(result.diagnostics, name)
                for name in ("dense_candidates", "lexical_matched", "expanded_words", "fused", "exact_compared")
            }
            found.append((result.passages, counts))
        return found

    before = look()
    index(two, "flood", *(f"{word} Urlaubsgeld Urlaubsort {n}" for n in range(30) for word in words))
    assert look() == before


def test_diagnostics_say_how_a_result_came_about(tenant: Principal) -> None:
    """Counts per channel, the space, the method and the time."""
    index(tenant, "x", "Urlaub", "Gehalt", "Vertrag")
    found = explained(tenant, "Wie viel Urlaub?").diagnostics
    assert (found.dense_method, found.index, found.exact_compared) == ("exact", None, 3)
    assert (found.lexical_matched, found.language) == (1, "de")
    assert found.milliseconds > 0
