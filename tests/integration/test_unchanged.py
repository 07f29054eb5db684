"""What has not changed costs nothing when it is sent again: no embedding request, no row that searching reads."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text

from functions.ingest.ingestion import ingest_document
from shared.database import forget_engines, tenant_session
from shared.fakes import FakeBus, FakeModels
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.round_trips import statements
from tests.integration.test_ingestion import submission
from tests.integration.test_repeats import embed_all
from tests.unit.parsing_material import make_pdf

LAW = "# Wartung\n\n" + "\n\n".join(
    f"## § {n}\n\nDie Pumpe {n} wird nach {n}.000 Stunden geprüft. " + f"Satz {n} der Anleitung. " * 200
    for n in range(1, 7)
)
PAGES = [[(72.0, 760.0 - 14 * row, 10.0, f"Seite {page}, Zeile {row}: die Dichtung.") for row in range(40)]
         for page in range(3)]  # fmt: skip
FILES = {"law.md": LAW.encode(), "book.pdf": make_pdf(PAGES)}
READ_BY_SEARCH = ("rag.chunks", "rag.chunk_terms", "rag.vocabulary", "rag.embeddings", "rag.answering_periods")


def rows(tenant: Principal) -> dict[str, set[Any]]:
    """Every row that searching reads, by where it lies and which transaction wrote it: a rewritten one is another."""
    with tenant_session(tenant.tenant_id) as session:
        return {
            table: {
                (row.ctid, row.xmin)
                for row in session.execute(
                    text(f"select ctid::text, xmin::text from {table} where tenant_id = :t"), {"t": tenant.tenant_id}
                )
            }
            for table in READ_BY_SEARCH
        }


def vectors(tenant: Principal) -> list[tuple[str, str]]:
    """Text and vector of every chunk that answers, in reading order."""
    with tenant_session(tenant.tenant_id) as session:
        found = session.execute(
            text(
                "select c.text, e.embedding::text as vector from rag.documents d "
                "join rag.chunks c on c.tenant_id = d.tenant_id and c.version_id = d.current_version_id "
                "join rag.embeddings e on e.tenant_id = c.tenant_id and e.chunk_id = c.chunk_id order by c.ordinal"
            )
        )
        return [(row.text, row.vector) for row in found]


def send(tenant: Principal, name: str, data: bytes, version: int, bus: FakeBus, services: Services) -> list[str]:
    """Submit a version and bring it to its end; returns the names of what was published, the submission apart."""
    ingest_document(submission(tenant, data, name, version), "upstream", services)
    published = bus.names()
    embed_all(bus, services)
    published += bus.names()
    bus.published.clear()
    return published


@pytest.mark.parametrize("name", FILES)
def test_the_same_bytes_again_write_nothing_that_searching_reads(
    name: str, tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Three new versions of the same bytes: each is told as indexed, none asks for a vector or touches a row."""
    send(tenant, name, FILES[name], 1, bus, fake_services)
    models = fake_services.models
    assert isinstance(models, FakeModels)
    before, embedded = rows(tenant), len(models.embedded)
    assert embedded == len(vectors(tenant)) > 1
    for version in (2, 3, 4):
        assert send(tenant, name, FILES[name], version, bus, fake_services) == ["document-indexed"]
    assert rows(tenant) == before
    assert len(models.embedded) == embedded


@pytest.mark.parametrize("name", FILES)
def test_the_same_text_in_other_bytes_is_read_but_not_embedded_again(
    name: str, tenant: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """An export on another day: a version of its own with every chunk, and every vector is the one it had."""
    send(tenant, name, FILES[name], 1, bus, fake_services)
    models = fake_services.models
    assert isinstance(models, FakeModels)
    before, embedded = vectors(tenant), len(models.embedded)
    other = FILES[name].replace(b"\n", b"\r\n") if name.endswith(".md") else FILES[name] + b"\n% exported again\n"
    assert send(tenant, name, other, 2, bus, fake_services) == ["document-indexed"]
    assert vectors(tenant) == before
    assert len(models.embedded) == embedded
    with tenant_session(tenant.tenant_id) as session:
        states = session.execute(text("select state from rag.versions order by source_version")).scalars().all()
    assert states == ["superseded", "searchable"]


def test_a_new_document_is_stored_in_few_round_trips(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """Nothing is looked for that only an earlier version can have: a new statement in the way is seen here."""
    forget_engines()  # one connection from here on, and the first document makes what a connection makes once
    send(tenant, "first.md", FILES["law.md"], 1, bus, fake_services)
    with statements() as seen:
        ingest_document(submission(tenant, FILES["law.md"], "second.md"), "upstream", fake_services)
    storing = seen[next(n for n, sql in enumerate(seen) if "set state = 'ingested'" in sql) :]
    # The version is taken, its rows, the live spaces, a command into the outbox; attachments of before, out of the
    # outbox again, who waits for room.
    assert len(storing) <= 7, storing
    assert len(seen) <= MOST_STATEMENTS, seen


MOST_STATEMENTS = 23
"""From a message to commands to embed, with COPY itself not counted."""


def test_only_what_changed_is_embedded(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """One section of six is another: its chunks are asked for, and no other text."""
    send(tenant, "law.md", FILES["law.md"], 1, bus, fake_services)
    models = fake_services.models
    assert isinstance(models, FakeModels)
    embedded = len(models.embedded)
    changed = LAW.replace("Satz 4 der Anleitung", "Satz 4 der neuen Anleitung").encode()
    assert send(tenant, "law.md", changed, 2, bus, fake_services) == ["embed-chunks", "document-indexed"]
    asked = models.embedded[embedded:]
    assert asked
    assert all("neuen Anleitung" in one for one in asked)
    assert len(asked) < embedded / 2
