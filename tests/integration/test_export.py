"""A tenant's export: whole, of one moment, of this tenant only, in bounded memory, and checked by machine."""

from __future__ import annotations

import hashlib
import json
import os
import random
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from cli.main import noesis
from shared.database import operator_session
from shared.errors import PermanentError
from shared.fakes import FakeBus
from shared.services import Services
from shared.services import services as process_services
from shared.settings import get_settings
from shared.storage import FolderStorage
from shared.tenants.directory import Principal
from shared.tenants.erasure import close_tenant, erase_tenant, find_erasure
from shared.tenants.export import MANIFEST, export_tenant, verify_export
from tests.integration.tenant_life import count_rows, live, rows_of_others


def export(tenant: Principal, services: Services, folder: Path, **options: Any) -> Path:
    target = folder / "export.zip"
    list(export_tenant(tenant.tenant_id, services.storage, target, actor="operator:test", **options))
    return target


def lines(file: Path, table: str) -> list[dict[str, Any]]:
    with zipfile.ZipFile(file) as archive:
        return [json.loads(line) for line in archive.read(f"tables/{table}.jsonl").splitlines()]


def test_everything_of_the_tenant_is_in_the_export(
    tenant: Principal,
    make_tenant: Callable[..., Principal],
    fake_services: Services,
    bus: FakeBus,
    tmp_path: Path,
) -> None:
    """Every table with every row, every blob, vectors as lists; nothing of the other tenant."""
    other = make_tenant()
    live(other, fake_services, bus, documents=1)
    live(tenant, fake_services, bus)
    before = rows_of_others(tenant.tenant_id)
    file = export(tenant, fake_services, tmp_path)
    manifest, digest = verify_export(file)
    assert {m["name"][7:-6]: m["rows"] for m in manifest["members"] if "rows" in m} == count_rows(tenant.tenant_id)
    with zipfile.ZipFile(file) as archive:
        blobs = {name[6:]: archive.read(name) for name in archive.namelist() if name.startswith("blobs/")}
        assert archive.namelist()[-1] == MANIFEST
        assert other.email.encode() not in b"".join(archive.read(name) for name in archive.namelist())
        assert hashlib.sha256(archive.read(MANIFEST)).hexdigest() == digest
    assert {blob.content_hash for blob in fake_services.storage.blobs(tenant.tenant_id)} == set(blobs)
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in blobs.items())
    (vector, *_) = [row["embedding"] for row in lines(file, "rag.embeddings")]
    assert len(vector) == 64
    assert sum(x * x for x in vector) == pytest.approx(1)
    assert {row["email"] for row in lines(file, "core.members")} == {tenant.email, f"second-{tenant.email}"}
    assert lines(file, "core.checkpoints")[0]["checkpoint"] == "\\x7b7d"
    assert (file.stat().st_mode & 0o777, list(tmp_path.glob(".*"))) == (0o600, [])
    after = rows_of_others(tenant.tenant_id)
    assert {name for name in before if before[name] != after[name]} == set()


def test_vectors_can_be_left_out(tenant: Principal, fake_services: Services, bus: FakeBus, tmp_path: Path) -> None:
    """They can be made again; the rows stay, so that the counts do."""
    live(tenant, fake_services, bus, documents=1)
    file = export(tenant, fake_services, tmp_path, vectors=False)
    assert verify_export(file)[0]["vectors"] is False
    assert all("embedding" not in row and row["chunk_id"] for row in lines(file, "rag.embeddings"))


def test_the_export_is_of_one_moment(tenant: Principal, fake_services: Services, bus: FakeBus, tmp_path: Path) -> None:
    """Rows that are written while it is made are in no table of it."""
    live(tenant, fake_services, bus, documents=1)
    rows = count_rows(tenant.tenant_id)
    steps = export_tenant(tenant.tenant_id, fake_services.storage, tmp_path / "e.zip", actor="operator:test")
    next(steps)
    live_more = "insert into core.groups (tenant_id, group_id, name) values (:t, gen_random_uuid(), 'zzz')"
    with operator_session() as session:
        session.execute(text(live_more), {"t": tenant.tenant_id})
        session.execute(
            text("update rag.documents set title = 'changed' where tenant_id = :t"), {"t": tenant.tenant_id}
        )
    list(steps)
    manifest, _ = verify_export(tmp_path / "e.zip")
    assert {m["name"][7:-6]: m["rows"] for m in manifest["members"] if "rows" in m} == rows
    assert all(row["title"] != "changed" for row in lines(tmp_path / "e.zip", "rag.documents"))


def test_memory_does_not_grow_with_the_tenant(tenant: Principal, bus: FakeBus, tmp_path: Path) -> None:
    """60 MB of rows and 30 MB of blobs pass through a few megabytes."""
    storage = FolderStorage((tmp_path / "blobs").as_uri())
    with operator_session() as session:
        session.execute(
            text(
                "insert into core.outbox (tenant_id, event_id, topic, data, attributes) select :t, gen_random_uuid(), "
                "'x', repeat(md5(n::text), 100), '{}' from generate_series(1, 20000) n"
            ),
            {"t": tenant.tenant_id},
        )
        document = "00000000-0000-0000-0000-000000000001"
        session.execute(
            text(
                "insert into rag.documents (tenant_id, document_id, collection_id, source, external_id, title, state) "
                "select :t, :d, collection_id, 'x', 'x', 'x', 'failed' from rag.collections where tenant_id = :t"
            ),
            {"t": tenant.tenant_id, "d": document},
        )
        for number in range(3):
            uri = storage.put(tenant.tenant_id, random.Random(number).randbytes(10_000_000))
            session.execute(
                text(
                    "insert into rag.versions (tenant_id, version_id, document_id, source_version, state, content_hash,"
                    " blob_uri, bytes, file_name, media_type, traceparent) values (:t, gen_random_uuid(), :d, :n, "
                    "'failed', '', :u, 1, '', '', '')"
                ),
                {"t": tenant.tenant_id, "d": document, "n": number, "u": uri},
            )
    target = tmp_path / "export.zip"
    tracemalloc.start()
    try:
        list(export_tenant(tenant.tenant_id, storage, target, actor="operator:test"))
        _, exporting = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        manifest, _ = verify_export(target)
        _, verifying = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(member["bytes"] for member in manifest["members"]) > 90_000_000
    print(f"peak: exporting {exporting / 1e6:.1f} MB, verifying {verifying / 1e6:.1f} MB")
    assert exporting < 12_000_000
    assert verifying < 12_000_000


def test_a_lost_blob_is_listed(tenant: Principal, fake_services: Services, bus: FakeBus, tmp_path: Path) -> None:
    """What the store no longer has does not end the export; the manifest says so."""
    live(tenant, fake_services, bus)
    (gone, *_) = list(fake_services.storage.blobs(tenant.tenant_id))
    fake_services.storage.delete(gone)
    manifest, _ = verify_export(export(tenant, fake_services, tmp_path))
    assert [uri[-64:] for uri in manifest["missing_blobs"]] == [gone.content_hash]
    assert sum(m["name"].startswith("blobs/") for m in manifest["members"]) == 2


def rewrite(file: Path, change: Callable[[str, bytes], bytes | None], extra: dict[str, bytes] | None = None) -> Path:
    """The same archive with members changed, left out (None) or added."""
    target = file.with_name("changed.zip")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
        for name, data in (extra or {}).items():
            new.writestr(name, data)
    return target


def test_any_change_is_noticed(tenant: Principal, fake_services: Services, bus: FakeBus, tmp_path: Path) -> None:
    """A byte changed, a row or a member gone or added, a foreign row, a name that leads elsewhere, half a file."""
    live(tenant, fake_services, bus, documents=1)
    file = export(tenant, fake_services, tmp_path)
    with zipfile.ZipFile(file) as archive:
        blob = next(name for name in archive.namelist() if name.startswith("blobs/"))
    chunks = "tables/rag.chunks.jsonl"

    def foreign(name: str, data: bytes) -> bytes:
        """Even with a manifest that agrees."""
        changed = data.replace(str(tenant.tenant_id).encode(), b"0" * 36)
        if name == chunks:
            return changed
        if name == MANIFEST:
            manifest = json.loads(data)
            for member in manifest["members"]:
                if member["name"] == chunks:
                    member["sha256"] = hashlib.sha256(foreign_rows).hexdigest()
            return json.dumps(manifest).encode()
        return data

    with zipfile.ZipFile(file) as archive:
        foreign_rows = archive.read(chunks).replace(str(tenant.tenant_id).encode(), b"0" * 36)
    changes: list[tuple[Callable[[str, bytes], bytes | None], dict[str, bytes] | None]] = [
        (lambda n, d: d.replace(b"Pumpe", b"Pampe") if n == chunks else d, None),
        (lambda n, d: b"" if n == chunks else d, None),
        (lambda n, d: None if n == blob else d, None),
        (lambda n, d: b"x" * len(d) if n == blob else d, None),
        (lambda n, d: d, {"../../evil": b"x"}),
        (lambda n, d: d.replace(chunks.encode(), b"../../etc/passwd") if n == MANIFEST else d, None),
        (lambda n, d: b"[]" if n == MANIFEST else d, None),
        (lambda n, d: b"{}" if n == MANIFEST else d, None),
        (lambda n, d: None if n == MANIFEST else d, None),
        (foreign, None),
    ]
    for number, (change, extra) in enumerate(changes):
        with pytest.raises(PermanentError) as refused:
            verify_export(rewrite(file, change, extra))
        assert refused.value.reason in ("export-damaged", "not-an-export"), number
    for data in (b"", b"PK", file.read_bytes()[: file.stat().st_size // 2], os.urandom(1000)):
        (tmp_path / "half.zip").write_bytes(data)
        with pytest.raises(PermanentError):
            verify_export(tmp_path / "half.zip")
    verify_export(file)


def test_an_export_that_fails_leaves_no_file(
    tenant: Principal, fake_services: Services, bus: FakeBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store breaks in the middle: what stood there before still stands there, and no record says otherwise."""
    live(tenant, fake_services, bus, documents=1)
    (tmp_path / "export.zip").write_bytes(b"an earlier one")

    def broken(*args: object) -> Any:
        yield b"half"
        raise ConnectionError("the store is away")

    monkeypatch.setattr(fake_services.storage, "read", broken)
    with pytest.raises(ConnectionError):
        export(tenant, fake_services, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["export.zip"]
    assert (tmp_path / "export.zip").read_bytes() == b"an earlier one"
    with operator_session() as session:
        assert not session.execute(
            text("select 1 from core.audit where action = 'tenant-exported' and tenant_id = :t"),
            {"t": tenant.tenant_id},
        ).scalar()


def test_the_certificate_names_the_last_export(
    tenant: Principal, fake_services: Services, bus: FakeBus, tmp_path: Path
) -> None:
    """Who holds both can show that what was erased is what was handed over."""
    live(tenant, fake_services, bus, documents=1)
    _, digest = verify_export(export(tenant, fake_services, tmp_path))
    with operator_session() as session:
        close_tenant(session, tenant.tenant_id, tenant.tenant_slug, "operator:test")
    list(erase_tenant(tenant.tenant_id, fake_services.storage, secret="x" * 32, stage="dev"))
    with operator_session() as session:
        erasure = find_erasure(session, tenant.tenant_slug)
    assert erasure is not None
    assert erasure.certificate is not None
    assert erasure.certificate["export"]["manifest_sha256"] == digest


def test_the_commands_export_and_verify(
    tenant: Principal, fake_services: Services, bus: FakeBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By slug, to a file; the same check by a command of its own."""
    monkeypatch.setenv("BLOB_URL", (tmp_path / "blobs").as_uri())
    get_settings.cache_clear()
    process_services.cache_clear()
    try:
        fake_services._storage = process_services().storage
        live(tenant, fake_services, bus, documents=1)
        file = tmp_path / "export.zip"
        made = CliRunner().invoke(noesis, ["tenants", "export", tenant.tenant_slug, "--to", str(file)])
        assert made.exit_code == 0, made.output
        checked = CliRunner().invoke(noesis, ["tenants", "verify-export", str(file)])
        assert checked.exit_code == 0, checked.output
        assert f"Whole and unchanged: {tenant.tenant_slug}" in checked.output
    finally:
        get_settings.cache_clear()
        process_services.cache_clear()
