"""Search as of a time finds what answered then, and nothing that was taken away since."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from shared.database import operator_session, tenant_session
from shared.documents.ending import withdraw
from shared.errors import PermanentError
from shared.events import Access, DocumentWithdrawn
from shared.fakes import FakeBus
from shared.retrieval.questions import Filters
from shared.retrieval.spaces import active_space
from shared.tenants.directory import Principal, add_member, memberships
from tests.integration.search_material import explained, index, now, titles


@pytest.fixture(autouse=True)
def _bus(bus: FakeBus) -> None:
    """What is published goes nowhere."""


def texts(who: Principal, question: str, as_of: datetime | None, *, lexical_only: bool = False) -> list[str]:
    """The texts found as of a moment, best first."""
    found = explained(who, question, Filters(as_of=as_of), lexical_only=lexical_only).passages
    return [p.text for p in found if p.bm25 > 0 or not lexical_only]


@pytest.mark.parametrize("lexical_only", [False, True], ids=["both channels", "words alone"])
def test_the_version_that_answered_then_is_found(tenant: Principal, lexical_only: bool) -> None:
    """Before the document nothing, then each version in its own time, today the newest."""
    start = now(tenant)
    index(tenant, "handbook", "Passwort Blaubeere.")
    first = now(tenant)
    index(tenant, "handbook", "Passwort Himbeere.", version=2)
    second = now(tenant)
    index(tenant, "handbook", "Passwort Stachelbeere.", version=3)
    found = [texts(tenant, "Passwort", moment, lexical_only=lexical_only) for moment in (start, first, second, None)]
    assert found == [[], ["Passwort Blaubeere."], ["Passwort Himbeere."], ["Passwort Stachelbeere."]]
    assert texts(tenant, "Passwort", now(tenant) + timedelta(days=1)) == ["Passwort Stachelbeere."]


def test_a_document_withdrawn_since_does_not_come_back(tenant: Principal) -> None:
    """The past shows no document that was taken away; resubmitted, its earlier times count again."""
    index(tenant, "secret", "Passwort Blaubeere.")
    before = now(tenant)
    with tenant_session(tenant.tenant_id) as session:
        gone = DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="secret", source_version=1)
        withdraw(session, gone, "upstream")
    without = now(tenant)
    assert texts(tenant, "Passwort", before) == []
    index(tenant, "secret", "Passwort Himbeere.", version=2)
    assert texts(tenant, "Passwort", before) == ["Passwort Blaubeere."]
    assert texts(tenant, "Passwort", without) == []


def test_a_version_that_answers_again_has_two_periods(tenant: Principal) -> None:
    """A rollback is a swap like any other: the older version answered before and after the newer one."""
    index(tenant, "handbook", "Passwort Blaubeere.")
    first = now(tenant)
    index(tenant, "handbook", "Passwort Himbeere.", version=2)
    second = now(tenant)
    with tenant_session(tenant.tenant_id) as session:
        session.execute(
            text(
                "update rag.documents d set current_version_id = v.version_id from rag.versions v "
                "where v.document_id = d.document_id and v.source_version = 1"
            )
        )
    found = [texts(tenant, "Passwort", moment) for moment in (first, second, now(tenant), None)]
    assert [one[0].split()[1] for one in found] == ["Blaubeere.", "Himbeere.", "Blaubeere.", "Blaubeere."]


def test_periods_of_a_document_never_overlap(tenant: Principal) -> None:
    """Many swaps leave one open period, and each begins where the one before it ended."""
    for version in range(1, 6):
        index(tenant, "handbook", f"Passwort Nummer {version}.", version=version)
    with tenant_session(tenant.tenant_id) as session:
        rows = session.execute(
            text("select answering_from, answering_until from rag.answering_periods order by answering_from")
        ).all()
    assert len(rows) == 5
    assert [row.answering_until for row in rows[:-1]] == [row.answering_from for row in rows[1:]]
    assert rows[-1].answering_until is None


def test_access_of_today_decides_about_the_past(tenant: Principal) -> None:
    """Who has lost access does not read yesterday's version either; filters go on counting."""
    index(tenant, "salaries", "Gehalt Tabelle A.", collection="hr", metadata={"year": "2025"})
    before = now(tenant)
    index(tenant, "salaries", "Gehalt Tabelle B.", version=2, access=Access(groups=("board",)), collection="hr")
    with operator_session() as operator:
        member = add_member(operator, tenant.tenant_id, "m@as-of.example", name="m")
    (someone,) = [p for p in memberships("m@as-of.example") if p.member_id == member]
    assert titles(someone, "Gehalt", Filters(as_of=before)) == []
    index(tenant, "holidays", "Gehalt im Urlaub.", language="en")
    assert titles(tenant, "Gehalt", Filters(as_of=now(tenant), languages=("en",))) == ["holidays"]
    assert titles(tenant, "Gehalt", Filters(as_of=now(tenant), sources=("web",))) == []


def test_words_find_what_has_no_vector_in_todays_space(tenant: Principal) -> None:
    """A version superseded before a campaign is found by its words, and the diagnostics say so."""
    index(tenant, "handbook", "Passwort Blaubeere.")
    before = now(tenant)
    index(tenant, "handbook", "Passwort Himbeere.", version=2)
    with tenant_session(tenant.tenant_id) as session:
        space = active_space(session, tenant.tenant_id)
        session.execute(
            text(
                "delete from rag.embeddings e using rag.chunks c, rag.versions v where e.space_id = :space "
                "and c.chunk_id = e.chunk_id and v.version_id = c.version_id and v.source_version = 1"
            ),
            {"space": space.space_id},
        )
    found = explained(tenant, "Blaubeere", Filters(as_of=before))
    assert [p.text for p in found.passages] == ["Passwort Blaubeere."]
    assert (found.diagnostics.without_vector, found.passages[0].similarity) == (1, 0.0)


def test_a_time_without_zone_is_a_typed_error(tenant: Principal) -> None:
    """A moment that could be any of twenty-four is not searched for."""
    naive = datetime.now(UTC).replace(tzinfo=None)
    with pytest.raises(PermanentError) as caught:
        explained(tenant, "Gehalt", Filters(as_of=naive))
    assert caught.value.reason == "bad-filter"
