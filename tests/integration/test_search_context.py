"""Passages are widened by what stands around them, within a budget, and every character keeps its chunk."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import text

from shared.database import tenant_session
from shared.documents.ending import withdraw
from shared.documents.storing import NewChunk
from shared.events import DocumentWithdrawn
from shared.fakes import FakeBus
from shared.retrieval.context import with_context
from shared.retrieval.passages import Passage, part_at
from shared.tenants.directory import Principal
from tests.integration.search_material import cut, explained, index

WORDS = "Antrag Frist Bescheid Gebühr Prüfung Termin Auskunft Nachweis Vertrag Zahlung".split()  # noqa: SIM905


@pytest.fixture(autouse=True)
def _bus(bus: FakeBus) -> None:
    """What is published goes nowhere."""


def handbook(sections: int = 4, sentences: int = 30) -> str:
    """A Markdown document whose sections are each several chunks long; every sentence is different."""
    parts = ["# Handbuch"]
    for section in range(sections):
        parts.append(f"## Abschnitt {section}")
        parts += [
            f"Der {WORDS[(section + n) % 10]} Nummer {section * 100 + n} regelt die {WORDS[n % 10]} im Fall {n}.\n"
            for n in range(sentences)
        ]
    return "\n\n".join(parts)


def widened(who: Principal, passages: list[Passage], budget: int) -> list[Passage]:
    """The passages with context."""
    with tenant_session(who.tenant_id) as session:
        return with_context(session, who.tenant_id, passages, budget)


def indexed(who: Principal, name: str = "handbook") -> tuple[str, list[NewChunk]]:
    """A searchable handbook; its text and chunks."""
    whole, chunks = cut(handbook(), 80)
    index(who, name, chunks=chunks)
    return whole, chunks


def test_a_passage_with_context_is_the_documents_own_text(tenant: Principal) -> None:
    """Merged over overlaps and gaps, every part is its chunk to the letter, and only space is added."""
    whole, chunks = indexed(tenant)
    found = explained(tenant, "Nummer 215").passages[:1]
    (wide,) = widened(tenant, found, 400)
    by_text = {chunk.text for chunk in chunks}
    assert len(wide.parts) >= 3
    assert all(wide.text[part.start : part.end] in by_text for part in wide.parts)
    assert re.sub(r"\s+", " ", wide.text) in re.sub(r"\s+", " ", whole)
    assert [part.chunk_id for part in wide.parts if part.chunk_id == found[0].chunk_id] == [wide.chunk_id]


def test_the_budget_is_kept_and_the_best_hit_stays(tenant: Principal) -> None:
    """However small the budget, the best passage comes whole; all others and all neighbours within it."""
    _, chunks = indexed(tenant)
    tokens = {chunk.text: chunk.tokens for chunk in chunks}
    found = explained(tenant, "Antrag Frist Bescheid").passages
    assert len(found) > 5
    for budget in (0, 60, 200, 500, 1500):
        wide = widened(tenant, found, budget)
        spent = sum(tokens[p.text[part.start : part.end]] for p in wide for part in p.parts)
        assert wide[0].chunk_id == found[0].chunk_id
        assert spent <= max(budget, tokens[found[0].text])


def test_the_section_comes_before_its_neighbours(tenant: Principal) -> None:
    """What stands under the same heading is taken first, one chunk beyond it only with what is left."""
    _, chunks = indexed(tenant)
    found = [p for p in explained(tenant, "Nummer 215").passages if "215" in p.text][:1]
    section = [chunk for chunk in chunks if chunk.heading_path == found[0].heading_path]
    budget = sum(chunk.tokens for chunk in section)
    (wide,) = widened(tenant, found, budget)
    assert {part.heading_path for part in wide.parts} == {found[0].heading_path}
    assert len(wide.parts) == len(section)
    (wider,) = widened(tenant, found, budget * 4)
    assert len(wider.parts) == len(section) + 2


def test_hits_that_meet_become_one_passage(tenant: Principal) -> None:
    """Neighbouring hits are merged under the better one's rank; no chunk appears twice."""
    indexed(tenant)
    found = explained(tenant, "Abschnitt 2 Nummer 201 Nummer 215 Nummer 229").passages
    wide = widened(tenant, found, 5000)
    seen = [part.chunk_id for passage in wide for part in passage.parts]
    assert len(wide) < len(found)
    assert len(seen) == len(set(seen))
    assert {p.chunk_id for p in found} <= set(seen)
    assert [p.score for p in wide] == sorted((p.score for p in wide), reverse=True)


def test_a_quotation_is_cited_from_the_chunk_it_stands_in(tenant: Principal) -> None:
    """What is quoted from a neighbour cites the neighbour, what is quoted from the hit the hit."""
    indexed(tenant)
    found = [p for p in explained(tenant, "Nummer 215").passages if "215" in p.text][:1]
    (wide,) = widened(tenant, found, 1000)
    for quote in ("Nummer 203", "Nummer 215", "Nummer 228"):
        start = wide.text.index(quote)
        part = part_at(wide, start, start + len(quote))
        assert quote in wide.text[part.start : part.end]
        assert (part.chunk_id == found[0].chunk_id) == (quote in found[0].text)


def test_pages_go_through_the_whole_passage(tenant: Principal) -> None:
    """Where a page begins is said in offsets of the merged text."""
    pages = [[1, "Erste Seite Blaubeere."], [2, "Zweite Seite Himbeere."], [3, "Dritte Seite Stachelbeere."]]
    chunks, start = [], 0
    for page, body in pages:
        chunks.append(
            NewChunk(str(body), str(body), start, start + len(str(body)), 5, "de", (), {"page_starts": [[page, 0]]})
        )
        start += len(str(body)) + 1
    index(tenant, "scan", chunks=chunks)
    found = explained(tenant, "Himbeere").passages[:1]
    (wide,) = widened(tenant, found, 100)
    starts = wide.position["page_starts"]
    assert [page for page, _ in starts] == [1, 2, 3]
    assert [wide.text[offset:].split()[0] for _, offset in starts] == ["Erste", "Zweite", "Dritte"]


def test_only_the_same_version_stands_around(tenant: Principal) -> None:
    """Neither an older version nor another document gets into the context."""
    index(tenant, "other", "Fremd eins.", "Fremd zwei.")
    index(tenant, "mine", "Alt eins.", "Alt zwei Himbeere.", "Alt drei.")
    index(tenant, "mine", "Neu eins.", "Neu zwei Himbeere.", "Neu drei.", version=2)
    found = [p for p in explained(tenant, "Himbeere").passages if "Himbeere" in p.text][:1]
    (wide,) = widened(tenant, found, 1000)
    assert len(wide.parts) == 3
    assert "Alt" not in wide.text
    assert "Fremd" not in wide.text


def test_a_document_deleted_meanwhile_has_no_context(tenant: Principal) -> None:
    """Between the search and its context a document can go; then its passage goes too."""
    index(tenant, "gone", "Passwort Blaubeere.", "Mehr davon.")
    found = explained(tenant, "Passwort").passages
    with tenant_session(tenant.tenant_id) as session:
        event = DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="gone", source_version=1)
        withdraw(session, event, "upstream")
    assert widened(tenant, found, 1000) == []
    assert widened(tenant, [], 1000) == []


def test_another_tenants_passage_gets_no_context(make_tenant: object, tenant: Principal) -> None:
    """Ids of another tenant give nothing."""
    assert callable(make_tenant)
    other: Principal = make_tenant()
    index(tenant, "mine", "Passwort Blaubeere.", "Mehr davon.")
    found = explained(tenant, "Passwort").passages
    assert found
    with tenant_session(other.tenant_id) as session:
        assert session.execute(text("select count(*) from rag.chunks")).scalar() == 0
        assert with_context(session, other.tenant_id, found, 1000) == []
        assert with_context(session, tenant.tenant_id, found, 1000) == []
