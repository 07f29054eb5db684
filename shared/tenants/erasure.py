"""Erasing a tenant: closed first, then every row and blob in slices, then a proof and a certificate.

Every step finds out what is left to do, so a process that was killed anywhere is followed by the same call again. No
late message brings anything back: sources are unbound, the archive keeps nothing of a closed tenant
(`shared.dead_letters.archive`), and once the tenant's row is gone no foreign key lets anything in.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared import audit
from shared.database import operator_session, patiently, write_one
from shared.errors import NoesisError, PermanentError
from shared.money.budgets import add, counters
from shared.retrieval.indexes import concurrently, owner_connection
from shared.storage import Storage
from shared.tenants import catalogue
from shared.tenants.certificates import signed

SLICE = 2_000
"""Rows of a transaction: short enough that nobody waits for its locks."""

PATIENCE = 300.0
"""Seconds to wait for transactions that were open when the tenant was closed."""

BLOBS = "blobs"


class ErasureBlocked(NoesisError):
    """Something keeps the erasure from its end; the message says what, and the same command goes on afterwards."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """How far an erasure is: `state` is closed, erasing, proving or erased."""

    tenant_id: UUID
    slug: str
    state: str
    requested_by: str
    before: dict[str, Any]
    deleted: dict[str, int]
    certificate: dict[str, Any] | None


def find_erasure(operator: Session, reference: str) -> Erasure | None:
    """The last erasure of a slug or tenant id, if there is one."""
    row = operator.execute(
        text(
            "select tenant_id, slug, state, requested_by, before, deleted, certificate from core.erasures "
            "where slug = :ref or cast(tenant_id as text) = :ref order by requested_at desc limit 1"
        ),
        {"ref": reference},
    ).first()
    return Erasure(*row) if row else None


def close_tenant(operator: Session, tenant_id: UUID, slug: str, actor: str) -> None:
    """Let nobody in any more: no member signs in, no source speaks for it, work in progress is superseded."""
    values = {"tenant": tenant_id, "slug": slug, "actor": actor}
    first = operator.execute(
        text(
            "insert into core.erasures (tenant_id, slug, state, requested_by, before) "
            "select :tenant, :slug, 'closed', :actor, jsonb_build_object('export', (select a.details from core.audit a "
            "where a.tenant_id = :tenant and a.action = 'tenant-exported' order by a.at desc limit 1)) "
            "on conflict do nothing"
        ),
        values,
    ).rowcount  # type: ignore[attr-defined]
    if first:
        audit.record(operator, actor=actor, action="tenant-closed", subject=str(tenant_id), tenant_id=tenant_id)
    for statement in (
        "update core.tenants set closed_at = coalesce(closed_at, now()) where tenant_id = :tenant",
        "delete from core.sources where tenant_id = :tenant",
        "update core.runs set state = 'cancelled', epoch = epoch + 1, lease_until = null, finished_at = now() "
        "where tenant_id = :tenant and state in ('queued', 'running', 'waiting')",
        "update rag.versions set state = 'superseded', updated_at = now() "
        "where tenant_id = :tenant and state in ('received', 'ingested')",
        # Filling a space goes on by itself, and every batch of it is paid for.
        "update rag.tenant_spaces set state = 'paused' where tenant_id = :tenant and state = 'filling'",
        "update rag.campaigns set state = 'cancelled', ended_at = now() "
        "where tenant_id = :tenant and state in ('planned', 'filling', 'paused', 'ready')",
    ):
        operator.execute(text(statement), values)


def erase_tenant(
    tenant_id: UUID,
    storage: Storage,
    *,
    secret: str,
    stage: str,
    owner_url: str = "",
    patience: float = PATIENCE,
    slice_rows: int = SLICE,
) -> Iterator[tuple[str, int]]:
    """Erase a closed tenant; yields (table or `blobs`, how many are gone) after every transaction.

    `secret` is SECRET_KEY, which signs the certificate; `owner_url` is for dropping the tenant's own indexes.
    Raises PermanentError `not-closed`, ErasureBlocked when something stands in the way.
    """
    erasure = _state(tenant_id)
    if erasure.state == "closed":
        _await_open_transactions(patience)
        _count_before(tenant_id, storage)
        yield "closed", 0
    if erasure.state in ("closed", "erasing"):
        yield from _erase_rows(tenant_id, stage, slice_rows)
    if erasure.state != "erased":
        yield from _erase_blobs(tenant_id, storage)
        _reduce_traces(tenant_id, owner_url)
        _certify(tenant_id, storage, secret)


@contextmanager
def _patient_session() -> Iterator[Session]:
    """For what looks at everything: a count, a search, the foreign keys of a slice."""
    with operator_session() as session, patiently(session, catalogue.STATEMENT_SECONDS):
        yield session


def _state(tenant_id: UUID) -> Erasure:
    with operator_session() as session:
        found = find_erasure(session, str(tenant_id))
    if found is None:
        raise PermanentError("not-closed", "Only a tenant that was closed can be erased.")
    return found


def _await_open_transactions(patience: float, pause: Callable[[float], None] = time.sleep) -> None:
    """Wait until no transaction is left that began to write before the tenant was closed, and so may not know it."""
    with operator_session() as session:
        horizon = session.execute(text("select cast(cast(pg_current_xact_id() as text) as bigint)")).scalar_one()
    deadline = time.monotonic() + patience
    while True:
        with operator_session() as session:
            oldest = session.execute(
                text("select cast(cast(pg_snapshot_xmin(pg_current_snapshot()) as text) as bigint)")
            ).scalar_one()
        if oldest >= horizon:
            return
        if time.monotonic() >= deadline:
            raise ErasureBlocked(
                "A transaction from before the tenant was closed is still open; run the command again."
            )
        pause(0.1)


def _count_before(tenant_id: UUID, storage: Storage) -> None:
    number = size = 0
    for blob in storage.blobs(tenant_id):
        number, size = number + 1, size + blob.size
    with _patient_session() as session:
        rows = {
            table.name: session.execute(
                text(f"select count(*) from {table.name} where tenant_id = :tenant"), {"tenant": tenant_id}
            ).scalar_one()
            for table in catalogue.tenant_tables(session)
        }
        rows[catalogue.LETTERS] = session.execute(
            text(f"select count(*) from {catalogue.LETTERS} where {_LETTERS_OF}"), _mentions(tenant_id)
        ).scalar_one()
        counted = {"rows": rows, "blobs": {"number": number, "bytes": size}}
        session.execute(
            text(
                "update core.erasures set before = before || cast(:counted as jsonb), state = 'erasing' "
                "where tenant_id = :tenant and state = 'closed'"
            ),
            {"tenant": tenant_id, "counted": json.dumps(counted)},
        )


_LETTERS_OF = """tenant_id = :tenant or (tenant_id is null
and (strpos(lower(cast(attributes as text)), :text) > 0 or position(cast(:bytes as bytea) in data) > 0))"""
"""Letters of the tenant, and those of nobody that name it; what another tenant's letter says is that tenant's."""


def _mentions(tenant_id: UUID) -> dict[str, Any]:
    return {"tenant": tenant_id, "text": str(tenant_id), "bytes": str(tenant_id).encode()}


def _erase_rows(tenant_id: UUID, stage: str, slice_rows: int) -> Iterator[tuple[str, int]]:
    with operator_session() as session:
        names = [table.name for table in catalogue.tenant_tables(session) if table.name != catalogue.TENANTS]
        order, loosened = catalogue.deletion_order(names, catalogue.references(session))
    for edge in loosened:
        nulls = ", ".join(f'"{column}" = null' for column in edge.loose)
        some = " or ".join(f'"{column}" is not null' for column in edge.loose)
        yield from _slices(tenant_id, edge.child, f"update {edge.child} set {nulls}", slice_rows, some, counted="")
    with operator_session() as session:
        _release_reservations(session, tenant_id, stage)
    for name in order:
        yield from _slices(tenant_id, name, f"delete from {name}", slice_rows, "true", counted=name)
    with _patient_session() as session:
        # What slipped in behind the slices; the tenant's own row is last, and nothing can follow it.
        _release_reservations(session, tenant_id, stage)
        for name in order:
            _delete(session, tenant_id, name, f"delete from {name} where tenant_id = :tenant", {"tenant": tenant_id})
        letters = f"delete from {catalogue.LETTERS} where {_LETTERS_OF}"
        _delete(session, tenant_id, catalogue.LETTERS, letters, _mentions(tenant_id))
        tenants = f"delete from {catalogue.TENANTS} where tenant_id = :tenant"
        _delete(session, tenant_id, catalogue.TENANTS, tenants, {"tenant": tenant_id})
        write_one(
            session, "update core.erasures set state = 'proving' where tenant_id = :tenant", {"tenant": tenant_id}
        )
    yield catalogue.TENANTS, 1


def _slices(
    tenant_id: UUID, table: str, verb: str, limit: int, some: str, *, counted: str
) -> Iterator[tuple[str, int]]:
    """Run a statement on the tenant's rows for which `some` holds until there are none, `limit` in a transaction."""
    slice_of = f"select ctid from {table} where tenant_id = :tenant and ({some}) limit :limit"
    statement = f"{verb} where tenant_id = :tenant and ctid = any(array({slice_of}))"
    done = 0
    while True:
        with _patient_session() as session:
            rows = _delete(session, tenant_id, counted, statement, {"tenant": tenant_id, "limit": limit})
        if not rows:
            return
        done += rows
        yield table, done


def _delete(session: Session, tenant_id: UUID, table: str, statement: str, values: dict[str, Any]) -> int:
    """Run a statement and, in the same transaction, count its rows on the tombstone."""
    rows: int = session.execute(text(statement), values).rowcount  # type: ignore[attr-defined]
    if rows and table:
        write_one(
            session,
            "update core.erasures set deleted = deleted || jsonb_build_object(cast(:table as text), "
            "coalesce(cast(deleted ->> cast(:table as text) as bigint), 0) + :rows) where tenant_id = :tenant",
            {"tenant": tenant_id, "table": table, "rows": rows},
        )
    return rows


def _release_reservations(session: Session, tenant_id: UUID, stage: str) -> None:
    """Give back to the stage's budget what the tenant's calls have reserved; what was spent stays in its totals."""
    rows = session.execute(
        text(
            "update core.ledger l set state = 'released', reserved_eur = 0 from (select call_key, reserved_eur, "
            "booked_at from core.ledger where tenant_id = :tenant and state = 'reserved' for update) open "
            "where l.tenant_id = :tenant and l.call_key = open.call_key returning open.reserved_eur, open.booked_at"
        ),
        {"tenant": tenant_id},
    ).all()
    for row in rows:
        for counter in counters(tenant_id, stage, row.booked_at):
            if counter.tenant_id is None:
                add(session, counter, -row.reserved_eur, Decimal(0))


def _erase_blobs(tenant_id: UUID, storage: Storage) -> Iterator[tuple[str, int]]:
    for done, _ in enumerate(storage.erase(tenant_id), start=1):
        if done % 100 == 0:
            yield BLOBS, done


def _reduce_traces(tenant_id: UUID, owner_url: str) -> None:
    """What belongs to the platform keeps ids only: the audit record, finished jobs, the planner's indexes."""
    with _patient_session() as session:
        session.execute(text("select core.reduce_audit(:tenant)"), {"tenant": tenant_id})
        session.execute(text(f"delete from {catalogue.LETTERS} where {_LETTERS_OF}"), _mentions(tenant_id))
        said = "strpos(coalesce(cast(result as text), '') || coalesce(cast(cursor as text), ''), :text) > 0"
        values = {"text": str(tenant_id)}
        session.execute(text(f"delete from core.job_runs where state in ('done', 'failed') and {said}"), values)
        # A job that is under way begins its slices again: they may be repeated.
        session.execute(text(f"update core.job_runs set cursor = null, result = '{{}}' where {said}"), values)
        indexes = catalogue.indexes_of(session, tenant_id)
    if indexes and owner_url:
        with owner_connection(owner_url) as owner:
            for name in indexes:
                concurrently(owner, f"drop index concurrently if exists {name}")


def _certify(tenant_id: UUID, storage: Storage, secret: str) -> None:
    left = sum(1 for _ in storage.blobs(tenant_id))
    with _patient_session() as session:
        proof = catalogue.search(session, tenant_id)
    if proof.own or left:
        found = ", ".join(f"{place} {count}" for place, count in {**proof.own, BLOBS: left}.items() if count)
        raise ErasureBlocked(
            f"The tenant is still to be found ({found}); run the command again. "
            "Indexes are dropped by `noesis jobs run index-care` where MIGRATION_DATABASE_URL is set."
        )
    with operator_session() as session:
        row = session.execute(
            text("select * from core.erasures where tenant_id = :tenant for update"), {"tenant": tenant_id}
        ).one()
        if row.certificate is not None:
            return
        now = session.execute(text("select now()")).scalar_one()
        certificate = signed(_facts(row, now, proof, session), secret)
        write_one(
            session,
            "update core.erasures set state = 'erased', erased_at = :now, certificate = cast(:certificate as jsonb) "
            "where tenant_id = :tenant",
            {"tenant": tenant_id, "now": now, "certificate": json.dumps(certificate)},
        )
        audit.record(
            session,
            actor=row.requested_by,
            action="tenant-erased",
            subject=str(tenant_id),
            tenant_id=tenant_id,
            rows=sum(row.deleted.values()),
            blobs=row.before["blobs"]["number"],
            certificate=certificate["signature"]["value"],
        )


def _facts(row: Any, now: Any, proof: catalogue.Findings, session: Session) -> dict[str, Any]:
    counted = session.execute(
        text("select count(*) from core.audit where tenant_id = :tenant"), {"tenant": row.tenant_id}
    ).scalar_one()
    names = sorted({*row.before["rows"], *row.deleted})
    return {
        "tenant_id": str(row.tenant_id),
        "slug": row.slug,
        "requested_by": row.requested_by,
        "requested_at": row.requested_at.isoformat(),
        "erased_at": now.isoformat(),
        "rows": {
            name: {"before": row.before["rows"].get(name, 0), "deleted": row.deleted.get(name, 0), "after": 0}
            for name in names
        },
        "blobs": {**row.before["blobs"], "after": 0},
        "proof": {
            "searched_columns": proof.searched,
            "found": proof.own,
            "named_by_other_tenants": proof.foreign,
        },
        # One more than is there now: the record of this very erasure.
        "kept": {catalogue.TOMBSTONES: 1, catalogue.AUDIT: counted + 1},
        "export": row.before.get("export"),
    }
