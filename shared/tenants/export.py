"""A tenant's data in one file: every row of every tenant table as JSON Lines, every blob, and a manifest over all.

Rows come out of one snapshot by server-side cursors, a few at a time; blobs in pieces. So the memory needed does not
grow with the tenant. `tenant_tables` finds the tables, a new one is exported without a word of code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared import audit
from shared.database import operator_session, patiently
from shared.errors import PermanentError
from shared.storage import Storage
from shared.tenants import catalogue
from shared.tenants.catalogue import STATEMENT_SECONDS

log = logging.getLogger(__name__)

FORMAT, VERSION = "noesis2-tenant-export", 1
MANIFEST = "manifest.json"

VECTORS = ("vector", "halfvec")
"""Types that are left out on wish: they can be made again from the text, and are most of the bytes."""

FETCH_BYTES = 1024 * 1024
"""About so much of a table is in memory at once; rows are as large as a message, 10 MB at most."""

PIECE = 1024 * 1024


def export_tenant(
    tenant_id: UUID, storage: Storage, target: Path, *, actor: str, vectors: bool = True
) -> Iterator[tuple[str, int]]:
    """Write the export to `target`, which appears when it is whole; yields (member, rows or bytes) as each is written.

    Its manifest's SHA-256 goes to the audit record, and from there into a certificate of erasure. A blob that the
    store does not have is listed in the manifest as missing.
    """
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as raw:
            with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED, allowZip64=True, compresslevel=1) as archive:
                manifest = yield from _members(tenant_id, storage, archive, vectors)
                written = json.dumps(manifest, indent=2, ensure_ascii=False).encode()
                archive.writestr(MANIFEST, written)
            raw.flush()
            os.fsync(raw.fileno())
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    with operator_session() as session:
        audit.record(
            session,
            actor=actor,
            action="tenant-exported",
            subject=str(tenant_id),
            tenant_id=tenant_id,
            manifest_sha256=hashlib.sha256(written).hexdigest(),
            made_at=manifest["made_at"],
            vectors=vectors,
        )
    yield MANIFEST, len(written)


def _members(
    tenant_id: UUID, storage: Storage, archive: zipfile.ZipFile, vectors: bool
) -> Generator[tuple[str, int], None, dict[str, Any]]:
    members: list[dict[str, Any]] = []
    missing: list[str] = []
    with tempfile.TemporaryFile("w+", encoding="utf-8") as uris:
        # The snapshot ends with the rows: one that is open for long keeps VACUUM from its work. The blobs of what it
        # saw stay anyway, because the collector waits for days.
        with operator_session() as session:
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            # A large table is sorted before its first row comes.
            with patiently(session, STATEMENT_SECONDS):
                session.execute(text("set transaction read only"))
                session.execute(text("set local timezone = 'UTC'"))
                head = _head(session, tenant_id)
                for table in catalogue.tenant_tables(session):
                    name = f"tables/{table.name}.jsonl"
                    members.append(_write(archive, name, _rows(session, table, tenant_id, vectors)))
                    yield name, members[-1]["rows"]
                uris.writelines(f"{uri}\n" for uri in _cursor(session, _URIS, tenant_id))
        uris.seek(0)
        for uri in map(str.rstrip, uris):
            pieces = storage.read(tenant_id, uri)
            try:
                first = next(pieces, b"")
            except PermanentError as error:
                log.warning("a blob is not exported: %s", error.reason)
                missing.append(uri)
                continue
            members.append(_write(archive, f"blobs/{uri[-64:]}", chain((first,), pieces)))
            yield members[-1]["name"], members[-1]["bytes"]
    return head | {"vectors": vectors, "members": members, "missing_blobs": missing}


def _head(session: Session, tenant_id: UUID) -> dict[str, Any]:
    tenant = session.execute(
        text("select slug, name, now() as at from core.tenants where tenant_id = :tenant"), {"tenant": tenant_id}
    ).one()
    revisions = session.scalars(text("select version_num from alembic_version order by 1")).all()
    return {
        "format": FORMAT,
        "version": VERSION,
        "tenant_id": str(tenant_id),
        "slug": tenant.slug,
        "name": tenant.name,
        "made_at": tenant.at.isoformat(),
        "schema": list(revisions),
    }


# One address a content: two would be two members of one name.
_URIS = """
select distinct on (right(blob_uri, 64)) blob_uri from rag.versions
where tenant_id = '{tenant}' and blob_uri <> '' order by right(blob_uri, 64), updated_at desc
"""


def _rows(session: Session, table: catalogue.Table, tenant_id: UUID, vectors: bool) -> Iterator[bytes]:
    """The tenant's rows of a table as lines of JSON, by primary key; vectors as lists of numbers."""
    chosen = [
        f'(cast("{column}" as text))::json as "{column}"' if kind in VECTORS else f'"{column}"'
        for column, kind in table.columns.items()
        if vectors or kind not in VECTORS
    ]
    order = ", ".join(f'"{column}"' for column in table.key) or "1"
    statement = (
        f"select cast(row_to_json(r) as text) from (select {', '.join(chosen)} from {table.name} "
        f"where tenant_id = '{{tenant}}' order by {order}) r"
    )
    for line in _cursor(session, statement, tenant_id):
        yield line.encode() + b"\n"


def _cursor(session: Session, statement: str, tenant_id: UUID) -> Iterator[str]:
    """The one column of a query by a server-side cursor: the driver would fetch the whole answer at once."""
    # A cursor's declaration takes no parameters; a UUID is its own quoting.
    session.execute(text(f"declare export no scroll cursor for {statement.replace('{tenant}', str(tenant_id))}"))
    wanted = 20
    while True:
        found = session.scalars(text(f"fetch {wanted} from export")).all()
        yield from found
        if len(found) < wanted:
            break
        average = max(1, sum(map(len, found)) // len(found))
        wanted = max(1, min(2_000, FETCH_BYTES // average))
    session.execute(text("close export"))


def _write(archive: zipfile.ZipFile, name: str, pieces: Iterable[bytes]) -> dict[str, Any]:
    """Write a member piece by piece; returns what the manifest says of it. Each piece of a table is a row."""
    digest, size, count = hashlib.sha256(), 0, 0
    with archive.open(name, "w", force_zip64=True) as member:
        for piece in pieces:
            member.write(piece)
            digest.update(piece)
            size, count = size + len(piece), count + 1
    told: dict[str, Any] = {"name": name, "bytes": size, "sha256": digest.hexdigest()}
    return told | ({"rows": count} if name.startswith("tables/") else {})


_MEMBER = re.compile(r"tables/(?:core|rag)\.[a-z_]+\.jsonl|blobs/[0-9a-f]{64}")

MANIFEST_LIMIT = 256 * 1024 * 1024
"""Bytes of a manifest that are read; about 200 a blob."""


def verify_export(file: Path) -> tuple[dict[str, Any], str]:
    """Check an export against its manifest; returns the manifest and its SHA-256.

    Every member is there, whole and unchanged, nothing else is, blobs are what their names say, every row belongs to
    the tenant. Raises PermanentError `not-an-export` or `export-damaged`.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            raw = _read_whole(archive, MANIFEST, MANIFEST_LIMIT)
            manifest = json.loads(raw)
            if not isinstance(manifest, dict) or (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
                raise PermanentError("not-an-export", "This is no export of a tenant by noesis2.")
            names = [info.filename for info in archive.infolist()]
            listed = [str(member["name"]) for member in manifest["members"]]
            if sorted(names) != sorted([*listed, MANIFEST]) or len(set(names)) != len(names):
                raise _damaged("its members are not those of its manifest")
            for member in manifest["members"]:
                _check_member(archive, member, str(manifest["tenant_id"]))
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError, OSError) as error:
        raise PermanentError(
            "not-an-export", f"This file cannot be read as an export ({type(error).__name__})."
        ) from None
    return manifest, hashlib.sha256(raw).hexdigest()


def _read_whole(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    with archive.open(name) as member:
        data = member.read(limit + 1)
    if len(data) > limit:
        raise _damaged(f"{name} is too large")
    return data


def _check_member(archive: zipfile.ZipFile, told: dict[str, Any], tenant_id: str) -> None:
    name = str(told["name"])
    if not _MEMBER.fullmatch(name):
        raise _damaged("a member has a name that no export gives")
    if archive.getinfo(name).file_size != told["bytes"]:
        raise _damaged(f"{name} has another size")
    digest, rows, table = hashlib.sha256(), 0, name.startswith("tables/")
    with archive.open(name) as member:
        # By lines for tables, whose rows are looked at; a line is as long as a row.
        for piece in member if table else iter(lambda: member.read(PIECE), b""):
            digest.update(piece)
            if table:
                rows += 1
                if json.loads(piece).get("tenant_id") != tenant_id:
                    raise _damaged(f"{name} has a row of another tenant")
    if digest.hexdigest() != told["sha256"] or (table and rows != told["rows"]):
        raise _damaged(f"{name} was changed")
    if not table and name != f"blobs/{told['sha256']}":
        raise _damaged(f"{name} is not what its name says")


def _damaged(what: str) -> PermanentError:
    return PermanentError("export-damaged", f"The export is damaged: {what}.", "Make it again.")
