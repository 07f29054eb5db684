"""Blobs that nothing refers to go, after a grace and in the state they were marked in; everything else stays."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from functions.ingest.ingestion import ingest_document
from functions.maintenance.running import run_job
from shared.database import operator_session, tenant_session
from shared.dead_letters.archive import DeadLetter, archive
from shared.documents.reading import submit_blob
from shared.events import DocumentSubmitted, RunJob
from shared.fakes import FakeBus, FakeClock, FakeStorage
from shared.jobs.leases import Progress
from shared.services import Services
from shared.storage import CloudStorage, FolderStorage, Storage
from shared.tenants.directory import Principal
from tests.cloud_storage import BUCKET, Cloud

DAY = timedelta(days=1)
GRACE = timedelta(days=8)


@pytest.fixture(params=["folder", "cloud", "fake"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """Every store keeps the same promises."""
    if request.param == "folder":
        yield FolderStorage((tmp_path / "blobs").as_uri())
    elif request.param == "fake":
        yield FakeStorage()
    else:
        cloud = Cloud(page=2)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.url)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "noesis-local")
        store = CloudStorage(f"gs://{BUCKET}/blobs")
        yield store
        store._bucket.client.close()
        cloud.close()


@pytest.fixture
def clock() -> FakeClock:
    """Far in the past: leaping ahead, it never makes a draft look old that somebody is just writing."""
    return FakeClock(datetime(2016, 1, 1, tzinfo=UTC))


@pytest.fixture
def world(fake_services: Services, storage: Storage, clock: FakeClock) -> Services:
    """Services with this store and a clock moved by hand; nothing of earlier tests refers to anything."""
    with operator_session() as session:
        for table in ("core.job_runs", "core.outbox", "core.dead_letters", "core.blob_marks"):
            session.execute(text(f"delete from {table}"))
        session.execute(text("update rag.versions set blob_uri = ''"))
    return Services(fake_services.settings, clock=clock, _storage=storage, _models=fake_services.models)


def collect(world: Services) -> dict[str, Any]:
    counts = run_job(RunJob(job="collect-blobs", slot=datetime.now(UTC)), world)
    assert counts is not None
    return dict(counts)


def refer(tenant: Principal, uri: str) -> DocumentSubmitted:
    return DocumentSubmitted(tenant_id=tenant.tenant_id, external_id=uuid4().hex, file_name="a.md", uri=uri)


def test_what_nobody_refers_to_goes_after_its_grace(tenant: Principal, world: Services, clock: FakeClock) -> None:
    """Marked at the first look, kept until the grace is over, then deleted; the audit record has the proof."""
    kept = world.storage.put(tenant.tenant_id, b"# Kept\n\nA document refers to it.\n")
    ingest_document(refer(tenant, kept), "upstream", world)
    loose = world.storage.put(tenant.tenant_id, b"nobody refers to it")
    first = collect(world)
    assert (first["kept"], first["marked"], first["deleted"]) == (1, 1, 0)
    clock.advance(GRACE - timedelta(minutes=1))
    assert collect(world)["deleted"] == 0
    clock.advance(timedelta(minutes=2))
    last = collect(world)
    assert (last["deleted"], last["bytes"], last["kept"]) == (1, 19, 1)
    assert (last["live"], last["found"], last["missing"]) == (1, 1, 0)
    assert world.storage.find(tenant.tenant_id, loose) is None
    assert world.storage.find(tenant.tenant_id, kept) is not None
    with operator_session() as session:
        proof = session.scalars(
            text("select details -> 'result' from core.audit where subject = 'collect-blobs' order by at desc limit 1")
        ).one()
        marks = session.execute(text("select count(*) from core.blob_marks")).scalar_one()
    assert (proof["deleted"], proof["live"], proof["found"], proof["missing"]) == (1, 1, 1, 0)
    assert marks == 0


def test_what_is_sent_again_starts_anew(tenant: Principal, world: Services, clock: FakeClock) -> None:
    """The same bytes again a moment before the end of the grace: the mark was for a state that is no more."""
    uri = world.storage.put(tenant.tenant_id, b"twice")
    collect(world)
    clock.advance(GRACE + DAY)
    assert world.storage.put(tenant.tenant_id, b"twice") == uri
    assert collect(world)["deleted"] == 0
    clock.advance(GRACE - timedelta(minutes=1))
    assert collect(world)["deleted"] == 0
    clock.advance(timedelta(minutes=2))
    assert collect(world)["deleted"] == 1


def _received(tenant: Principal, world: Services, uri: str) -> None:
    """A version that could not be parsed, and so never got any further."""
    ingest_document(refer(tenant, uri), "upstream", world)


def _outbox(tenant: Principal, world: Services, uri: str) -> None:
    bus_down(tenant, world, uri)


def bus_down(tenant: Principal, world: Services, uri: str) -> None:
    event = refer(tenant, uri)
    with operator_session() as session:
        session.execute(
            text(
                "insert into core.outbox (tenant_id, event_id, topic, data, attributes, created_at) "
                "values (:t, :e, 'documents-web', :d, '{}', now())"
            ),
            {"t": tenant.tenant_id, "e": event.event_id, "d": event.data().decode()},
        )


def _waiting(tenant: Principal, world: Services, uri: str) -> None:
    few = world.settings.model_copy(update={"documents_in_progress": 1})
    crowded = Services(few, clock=world.clock, _storage=world.storage, _models=world.models)
    first = DocumentSubmitted(
        tenant_id=tenant.tenant_id, external_id="first", content=base64.b64encode(b"# One\n\ntext\n").decode()
    )
    ingest_document(first, "upstream", crowded)
    ingest_document(refer(tenant, uri), "upstream", crowded)
    own = {"t": tenant.tenant_id}
    with operator_session() as session:
        waits = "select count(*) from core.waiting_messages where tenant_id = :t"
        assert session.execute(text(waits), own).scalar_one() == 1
        session.execute(text("update rag.versions set blob_uri = '' where waiting = 'turn' and tenant_id = :t"), own)


def _letter(tenant: Principal, world: Services, uri: str) -> None:
    event = refer(tenant, uri)
    with operator_session() as session:
        archive(session, [DeadLetter("ingest-upstream", "1", event.data(), event.attributes(), "transient", "x", "x")])


def _broken_letter(tenant: Principal, world: Services, uri: str) -> None:
    data = b"\xff\x00{" + uri.replace("/", "\\/").encode() + b"..."
    with operator_session() as session:
        archive(session, [DeadLetter("ingest-upstream", "2", data, {}, "poison", "malformed-message", "x")])


def _upload(tenant: Principal, world: Services, uri: str) -> None:
    with operator_session() as session:
        session.execute(
            text(
                "insert into core.uploads (tenant_id, upload_id, member_id, file_name, media_type, content_hash, bytes,"
                " token_hash, expires_at) values (:t, :u, :m, 'a.pdf', '', :h, 5, 'x', now() + interval '30 days')"
            ),
            {"t": tenant.tenant_id, "u": uuid4(), "m": tenant.member_id, "h": uri[-64:]},
        )


@pytest.mark.parametrize("storage", ["fake"], indirect=True)
@pytest.mark.parametrize("refers", [_received, _outbox, _waiting, _letter, _broken_letter, _upload])
def test_everything_that_names_a_blob_keeps_it(
    tenant: Principal, world: Services, clock: FakeClock, refers: Callable[[Principal, Services, str], None]
) -> None:
    """A failed version, the outbox, the line, a dead letter (also an unreadable one), an upload under way."""
    uri = world.storage.put(tenant.tenant_id, b"%PDF-1.4 this cannot be parsed")
    refers(tenant, world, uri)
    for _ in range(3):
        assert collect(world)["deleted"] == 0
        clock.advance(GRACE + DAY)
    assert world.storage.find(tenant.tenant_id, uri) is not None


@pytest.mark.parametrize("storage", ["fake"], indirect=True)
def test_a_blob_is_named_from_reception_on(tenant: Principal, world: Services, bus: FakeBus) -> None:
    """The version says so before anything is read; a foreign or a web address is not a blob of ours."""
    uri = world.storage.put(tenant.tenant_id, b"# Text\n\nof a document\n")
    other = FakeStorage().put(uuid4(), b"of somebody else")
    for named in (uri, other):
        ingest_document(refer(tenant, named), "upstream", world)
    with operator_session() as session:
        rows = session.execute(
            text("select state, reason, blob_uri from rag.versions where tenant_id = :t order by state"),
            {"t": tenant.tenant_id},
        ).all()
    assert [tuple(row) for row in rows] == [("failed", "uri-not-allowed", ""), ("ingested", None, uri)]


@pytest.mark.parametrize("storage", ["fake"], indirect=True)
def test_a_store_under_another_address_is_not_emptied(tenant: Principal, world: Services, clock: FakeClock) -> None:
    """BLOB_URL was changed or misspelt: the versions' addresses are other ones, their blobs stay, and it is noticed."""
    ingest_document(refer(tenant, world.storage.put(tenant.tenant_id, b"# A\n\ntext\n")), "upstream", world)
    assert isinstance(world.storage, FakeStorage)
    world.storage.root = "fake://elsewhere"
    for _ in range(3):
        counts = collect(world)
        assert (counts["deleted"], counts["kept"], counts["missing"]) == (0, 1, 1)
        clock.advance(GRACE + DAY)


@pytest.mark.parametrize("storage", ["fake"], indirect=True)
def test_a_missing_blob_is_noticed(tenant: Principal, world: Services, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody emptied the bucket by hand: the proof fails loudly."""
    ingest_document(refer(tenant, world.storage.put(tenant.tenant_id, b"# A\n\ntext\n")), "upstream", world)
    assert collect(world)["missing"] == 0
    list(world.storage.erase(tenant.tenant_id))
    assert collect(world)["missing"] == 1
    assert "missing" in caplog.text


@pytest.mark.parametrize("storage", ["fake"], indirect=True)
def test_bytes_of_an_erased_tenant_have_no_grace(world: Services) -> None:
    """An upload that arrived after the erasure goes with the next run."""
    gone = uuid4()
    with operator_session() as session:
        session.execute(
            text("insert into core.erasures (tenant_id, slug, state, requested_by) values (:t, 'gone', 'erased', 'x')"),
            {"t": gone},
        )
    world.storage.put(gone, b"late")
    world.storage.put(uuid4(), b"of a tenant that nobody knows")
    counts = collect(world)
    assert (counts["deleted"], counts["marked"]) == (1, 1)


@pytest.mark.parametrize("storage", ["fake"], indirect=True)
def test_a_long_run_goes_on_where_it_was(
    tenant: Principal, world: Services, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handed over after every page, the counts add up and each blob is looked at once."""
    monkeypatch.setattr("functions.maintenance.jobs.collect_blobs.PAGE", 3)
    for number in range(10):
        world.storage.put(tenant.tenant_id, bytes([number]))
    ingest_document(refer(tenant, world.storage.put(tenant.tenant_id, b"# A\n\ntext\n")), "upstream", world)
    command, turns = RunJob(job="collect-blobs", slot=datetime.now(UTC)), 1

    def watch(progress: Progress) -> None:
        if progress.cursor:  # a page took as long as a whole turn may
            clock.advance(timedelta(seconds=1))

    while (counts := run_job(command, world, seconds=1, watch=watch)) is None:
        turns += 1
    assert turns > 3
    assert (counts["marked"], counts["kept"], counts["live"], counts["found"]) == (10, 1, 1, 1)


@pytest.mark.parametrize("storage", ["folder", "cloud"], indirect=True)
def test_a_collector_beside_uploads_loses_none(
    tenant: Principal, world: Services, clock: FakeClock, storage: Storage, bus: FakeBus
) -> None:
    """Members send the same bytes again and again while the collector runs and its clock leaps: what a document
    refers to is always there. A message is never longer on its way than the grace, which is what the grace is for."""
    contents = [f"# Doc {n}\n\ntext\n".encode() for n in range(3)]
    on_its_way, ran = threading.Lock(), threading.Semaphore(0)
    ended, bus.down = threading.Event(), True  # the outbox is what refers to a blob
    deleted, rounds = 0, 8 if isinstance(storage, CloudStorage) else 20

    def collecting() -> None:
        nonlocal deleted
        while not ended.is_set():
            deleted += collect(world)["deleted"]
            with on_its_way:
                clock.advance(GRACE + DAY)
            ran.release()

    with ThreadPoolExecutor(1) as pool:
        collector = pool.submit(collecting)
        try:
            for number in range(rounds):
                for content in contents:
                    with on_its_way:
                        uri = storage.put(tenant.tenant_id, content)
                        with tenant_session(tenant.tenant_id) as session:
                            submit_blob(session, tenant, uri, f"{number}.md", version=number + 1)
                    assert storage.get(tenant.tenant_id, uri, 100) == content
                # The documents are deleted for good: their bytes are nobody's, and the next look marks them.
                with operator_session() as session:
                    session.execute(text("delete from core.outbox"))
                while ran.acquire(blocking=False):
                    pass
                for _ in range(2):
                    assert ran.acquire(timeout=30)
        finally:
            ended.set()
        collector.result()
    assert deleted > rounds / 5, "they never met"
