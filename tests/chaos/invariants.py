"""What must hold of a tenant at any instant, and what must be there when all is quiet; read as the tables' owner."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from shared.documents.vectors import embedding_text
from shared.fakes import hashed_vector
from tests.chaos.wire import price_in_tokens

_HALF_VISIBLE = """
select d.external_id from rag.documents d left join rag.versions v
  on v.tenant_id = d.tenant_id and v.version_id = d.current_version_id
where d.tenant_id = :t and (
  (d.state = 'searchable') <> (d.current_version_id is not null)
  or (v.version_id is not null and (
    v.state <> 'searchable' or v.document_id <> d.document_id
    or v.chunks <> (select count(*) from rag.chunks c where c.tenant_id = :t and c.version_id = v.version_id)
    or exists (select from rag.chunks c cross join rag.tenant_spaces s where c.tenant_id = :t
      and c.version_id = v.version_id and s.tenant_id = :t and s.state = 'active' and not exists (
        select from rag.embeddings e where e.tenant_id = :t and e.chunk_id = c.chunk_id and e.space_id = s.space_id)))))
  or (select count(*) from rag.versions s where s.tenant_id = :t and s.document_id = d.document_id
      and s.state = 'searchable') > 1
"""

_ORPHANS = """
select (select count(*) from rag.embeddings e where e.tenant_id = :t and not exists (
          select from rag.chunks c where c.tenant_id = :t and c.chunk_id = e.chunk_id)) as vectors,
       (select count(*) from rag.chunks c where c.tenant_id = :t and not exists (
          select from rag.versions v where v.tenant_id = :t and v.version_id = c.version_id)) as chunks,
       (select count(*) from (select 1 from rag.chunks where tenant_id = :t
          group by version_id, ordinal having count(*) > 1) twice) as duplicates,
       (select count(*) from rag.chunks c where c.tenant_id = :t and not exists (
          select from rag.chunk_terms x where x.tenant_id = :t and x.chunk_id = c.chunk_id)) as unsearchable
"""

_MONEY = """
select (select coalesce(sum(tokens), 0) from core.ledger where tenant_id = :t) as tokens,
       (select coalesce(sum(cost_eur), 0) from core.ledger where tenant_id = :t) as cost,
       (select coalesce(sum(spent_eur), 0) from core.spending where tenant_id = :t and period = 'month') as spent,
       (select coalesce(sum(reserved_eur), 0) from core.ledger where tenant_id = :t)
         + (select coalesce(sum(reserved_eur), 0) from core.spending where tenant_id = :t) as reserved
"""


class Database:
    """A look into the tables past row-level security."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def rows(self, sql: str, **values: object) -> list[Any]:
        """The rows of a query."""
        with self._engine.begin() as connection:
            return list(connection.execute(text(sql), values).all())

    def change(self, sql: str, **values: object) -> None:
        """A statement that changes rows: time that passes, say."""
        with self._engine.begin() as connection:
            connection.execute(text(sql), values)

    def violations(self, tenant: UUID) -> list[str]:
        """What is broken right now, also between a crash and its repair; empty when nothing is."""
        found = [f"half-visible: {row.external_id}" for row in self.rows(_HALF_VISIBLE, t=tenant)]
        counts = self.rows(_ORPHANS, t=tenant)[0]._asdict()
        found += [f"{count} {what}" for what, count in counts.items() if count]
        return found

    def stored(self, tenant: UUID) -> Counter[str]:
        """What the model was shown of chunks that have a vector."""
        sql = (
            "select c.heading_path, c.text from rag.embeddings e join rag.chunks c on c.tenant_id = e.tenant_id "
            "and c.chunk_id = e.chunk_id where e.tenant_id = :t"
        )
        return Counter(embedding_text(row.heading_path, row.text) for row in self.rows(sql, t=tenant))

    def wrong_vectors(self, tenant: UUID, dimension: int) -> list[str]:
        """Texts whose stored vector is not theirs."""
        sql = (
            "select c.heading_path, c.text, cast(e.embedding as text) as vector from rag.embeddings e "
            "join rag.chunks c on c.tenant_id = e.tenant_id and c.chunk_id = e.chunk_id where e.tenant_id = :t"
        )
        return [
            row.text
            for row in self.rows(sql, t=tenant)
            if json.loads(row.vector)
            != pytest.approx(hashed_vector(embedding_text(row.heading_path, row.text), dimension), abs=1e-6)
        ]

    def money(self, tenant: UUID) -> Any:
        """Tokens and EUR in the ledger, EUR in the month's counter, EUR that is still reserved."""
        return self.rows(_MONEY, t=tenant)[0]

    def story(self, tenant: UUID, marker: str) -> dict[str, Any]:
        """Everything of a tenant that a crash must not change, without what differs from tenant to tenant."""
        documents = self.rows(
            "select d.external_id, d.source, d.state, d.reason, d.title, d.withdrawn_version, v.source_version "
            "from rag.documents d left join rag.versions v on v.tenant_id = d.tenant_id "
            "and v.version_id = d.current_version_id where d.tenant_id = :t order by 1",
            t=tenant,
        )
        versions = self.rows(
            "select d.external_id, v.source_version, v.state, v.reason, v.chunks, v.bytes, v.waiting "
            "from rag.versions v join rag.documents d on d.tenant_id = v.tenant_id and d.document_id = v.document_id "
            "where v.tenant_id = :t order by 1, 2",
            t=tenant,
        )
        chunks = self.rows(
            "select d.external_id, v.source_version, c.ordinal, c.text, c.heading_path, c.position, "
            "exists (select from rag.embeddings e where e.tenant_id = :t and e.chunk_id = c.chunk_id) as embedded "
            "from rag.chunks c join rag.versions v on v.tenant_id = c.tenant_id and v.version_id = c.version_id "
            "join rag.documents d on d.tenant_id = v.tenant_id and d.document_id = v.document_id "
            "where c.tenant_id = :t order by 1, 2, 3",
            t=tenant,
        )
        letters = self.rows("select name, class, reason from core.dead_letters where tenant_id = :t", t=tenant)
        told = {"documents": documents, "versions": versions, "chunks": chunks, "letters": letters}
        return {
            name: [[value.replace(marker, "*") if isinstance(value, str) else value for value in row] for row in rows]
            for name, rows in told.items()
        }


def outcomes(heard: list[dict[str, Any]], tenant: UUID) -> dict[tuple[str, str, int], set[str]]:
    """The outcome events of a tenant: event ids by name, document and source version."""
    found: dict[tuple[str, str, int], set[str]] = {}
    for event in heard:
        if event["tenant_id"] == str(tenant) and event["name"].startswith("document-"):
            key = (event["name"], event["external_id"], event["source_version"])
            found.setdefault(key, set()).add(event["event_id"])
    return found


def tokens_of(texts: Counter[str]) -> int:
    """What the provider counted for texts."""
    return sum(price_in_tokens(each) * count for each, count in texts.items())
