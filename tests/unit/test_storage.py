"""Blobs: the same bytes once, a tenant's only for that tenant, whole or not there; in a folder and in the cloud."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from shared.errors import PermanentError, SettingsError
from shared.fakes import FakeStorage
from shared.settings import Settings
from shared.storage import CloudStorage, FolderStorage, Storage, make_storage
from tests.cloud_storage import BUCKET, Cloud

TENANT, OTHER = uuid4(), uuid4()
LIMIT = 1_000_000


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """A small Cloud Storage on loopback; STORAGE_EMULATOR_HOST is how Google's client finds it."""
    made = Cloud(page=3)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", made.url)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "noesis-local")
    yield made
    made.close()


@pytest.fixture(params=["folder", "cloud", "cloud-prefix", "fake"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """Every store keeps the same promises, its twin for tests included."""
    if request.param == "folder":
        yield FolderStorage((tmp_path / "blobs of ä").as_uri())
    elif request.param == "fake":
        yield FakeStorage()
    else:
        cloud: Cloud = request.getfixturevalue("cloud")
        store = CloudStorage(f"gs://{BUCKET}" + ("/blobs/v1" if request.param == "cloud-prefix" else ""))
        yield store
        store._bucket.client.close()
        assert all(name.startswith("blobs/v1/") for name in cloud.objects) or request.param == "cloud"


def _refused(store: Storage, tenant: UUID, uri: str, limit: int = LIMIT) -> str:
    with pytest.raises(PermanentError) as caught:
        store.get(tenant, uri, limit)
    assert caught.value.next_action
    return caught.value.reason


@pytest.mark.parametrize("data", [b"", b"x", b"line\r\nline\n\r\n", bytes(range(256)) * 1000], ids=len)
def test_what_goes_in_comes_out(store: Storage, data: bytes) -> None:
    """To the last byte, empty ones included."""
    assert store.get(TENANT, store.put(TENANT, data), LIMIT) == data


def test_the_same_bytes_have_the_same_address(store: Storage) -> None:
    """A redelivery stores nothing new; the address is the content's SHA-256 below the tenant."""
    uri = store.put(TENANT, b"text")
    assert store.put(TENANT, b"text") == uri
    assert uri.endswith(f"/{TENANT}/{hashlib.sha256(b'text').hexdigest()}")
    assert store.put(TENANT, b"text!") != uri
    assert store.put(OTHER, b"text") != uri


def test_a_tenant_cannot_read_anothers_blob(store: Storage) -> None:
    """A message may name any URI; only the tenant's own ones are opened."""
    uri = store.put(TENANT, b"secret")
    assert _refused(store, OTHER, uri) == "uri-not-allowed"


def test_only_addresses_of_the_store_are_opened(store: Storage, tmp_path: Path) -> None:
    """No way leads out of the tenant's prefix: not by dots, encodings, other schemes or other roots."""
    uri = store.put(TENANT, b"own")
    root, name = uri.removesuffix(f"/{TENANT}/{uri[-64:]}"), uri[-64:]
    foreign = store.put(OTHER, b"secret").removeprefix(root + "/")
    (tmp_path / "secret").write_text("secret")
    for bad in (
        "",
        "/etc/passwd",
        "file:///etc/passwd",
        f"gs://{BUCKET}-of-others/{TENANT}/{name}",
        f"{root}/{TENANT}/../{foreign}",
        f"{root}/{TENANT}/%2e%2e/{foreign}",
        f"{root}/{TENANT}//{name}",
        f"{root}/./{TENANT}/{name}",
        f"{root}//{TENANT}/{name}",
        f"{root}x/{TENANT}/{name}",
        f"{root}/{TENANT}/{name}\n",
        f"{root}/{TENANT}/{name}?generation=1",
        f"{root}/{TENANT}/{name}#x",
        f"{root}/{TENANT}/{name.upper()}",
        f"{root}/{TENANT}/{name[:-1]}",
        f"{root}/{TENANT}",
        f"{root}/../secret",
        f" {uri}",
        "http://169.254.169.254/computeMetadata/v1/",
    ):
        assert _refused(store, TENANT, bad) == "uri-not-allowed", bad


def test_a_missing_blob_says_so(store: Storage) -> None:
    """Gone is gone: a permanent failure with a way out, not an endless retry."""
    uri = store.put(TENANT, b"text")
    assert _refused(store, TENANT, uri[:-64] + "0" * 64) == "blob-missing"


def test_a_blob_over_the_limit_is_not_read(store: Storage) -> None:
    """Exactly the limit is allowed, one byte more is not."""
    uri = store.put(TENANT, b"x" * 1000)
    assert len(store.get(TENANT, uri, 1000)) == 1000
    assert _refused(store, TENANT, uri, 999) == "too-large"


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle of a write: no half blob under the final name, no litter, and the next try works."""
    store = FolderStorage(tmp_path.as_uri())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            store.put(TENANT, b"text")
    assert _files(tmp_path) == []
    assert store.get(TENANT, store.put(TENANT, b"text"), LIMIT) == b"text"


def test_a_blob_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the rename, the address does not exist; the bytes are on the disk before it does."""
    store = FolderStorage(tmp_path.as_uri())
    name = hashlib.sha256(b"text").hexdigest()
    seen: list[tuple[bool, int]] = []
    sync = os.fsync

    def watched(descriptor: int) -> None:
        seen.append(((tmp_path / str(TENANT) / name).exists(), os.fstat(descriptor).st_size))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    store.put(TENANT, b"text")
    assert seen == [(False, 4)]
    assert _files(tmp_path) == [name]


def test_concurrent_writers_of_the_same_bytes_agree(tmp_path: Path) -> None:
    """Two deliveries of one document at the same moment end in one whole file."""
    store = FolderStorage(tmp_path.as_uri())
    data = os.urandom(200_000)
    uris: list[str] = []
    threads = [threading.Thread(target=lambda: uris.append(store.put(TENANT, data))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(uris) == 8
    assert len(set(uris)) == 1
    assert store.get(TENANT, uris[0], LIMIT) == data
    assert _files(tmp_path) == [uris[0][-64:]]


def test_cloud_objects_are_written_once_and_read_within_bounds(cloud: Cloud) -> None:
    """Uploads say “only if absent”, downloads ask for one byte more than allowed and never for the rest."""
    store = CloudStorage(f"gs://{BUCKET}")
    uri = store.put(TENANT, b"x" * 5000)
    assert store.put(TENANT, b"x" * 5000) == uri
    assert [query["ifGenerationMatch"] for query in cloud.uploads] == [["0"], ["0"]]
    assert _refused(store, TENANT, uri, 100) == "too-large"
    assert cloud.ranges == ["bytes=0-100"]
    store._bucket.client.close()


def test_a_bad_moment_of_the_cloud_is_survived(cloud: Cloud) -> None:
    """An upload that is safe to repeat is repeated by Google's client."""
    cloud.failures = 1
    store = CloudStorage(f"gs://{BUCKET}")
    assert store.get(TENANT, store.put(TENANT, b"text"), LIMIT) == b"text"
    assert len(cloud.uploads) == 2
    store._bucket.client.close()


def _settings(url: str) -> Settings:
    return Settings(database_url="postgresql+pg8000://nobody@127.0.0.1/none", blob_url=url)  # type: ignore[arg-type]


def test_the_setting_chooses_the_store(cloud: Cloud, tmp_path: Path) -> None:
    """file:// is a folder, gs:// a bucket, anything else a sentence that says what to set."""
    assert isinstance(make_storage(_settings(tmp_path.as_uri())), FolderStorage)
    in_cloud = make_storage(_settings(f"gs://{BUCKET}/blobs"))
    assert isinstance(in_cloud, CloudStorage)
    in_cloud._bucket.client.close()
    for bad in ("", "/var/blobs", "file://host/blobs", "s3://bucket", "http://bucket"):
        with pytest.raises(SettingsError, match="BLOB_URL"):
            make_storage(_settings(bad))


def test_bytes_that_are_sent_again_are_new_again(store: Storage) -> None:
    """Whoever is about to delete what was there before finds that it is no longer as it was seen."""
    uri = store.put(TENANT, b"text")
    seen = store.find(TENANT, uri)
    assert seen is not None
    assert (seen.key, seen.size) == (f"{TENANT}/{hashlib.sha256(b'text').hexdigest()}", 4)
    assert abs(seen.changed_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert store.put(TENANT, b"text") == uri
    assert store.delete(seen) is False
    again = store.find(TENANT, uri)
    assert again is not None
    assert again.version != seen.version
    renewed = store.refresh(TENANT, uri)
    assert renewed is not None
    assert renewed == store.find(TENANT, uri) != again
    assert (store.delete(again), store.delete(renewed), store.delete(renewed)) == (False, True, False)
    assert store.find(TENANT, uri) is None
    assert store.refresh(TENANT, uri) is None
    assert store.get(TENANT, store.put(TENANT, b"text"), LIMIT) == b"text"


def test_every_blob_is_listed_in_order(store: Storage) -> None:
    """Of one tenant or of all, by pages, from any key on; nothing else that lies there."""
    keys = sorted(store.put(t, bytes([n]))[-101:] for t in (TENANT, OTHER) for n in range(8))
    assert [blob.key for blob in store.blobs()] == keys
    assert [blob.key for blob in store.blobs(after=keys[4])] == keys[5:]
    assert [blob.key for blob in store.blobs(TENANT)] == [key for key in keys if key.startswith(str(TENANT))]
    assert list(store.blobs(uuid4())) == []


def test_erasing_a_tenant_leaves_the_others(store: Storage) -> None:
    """Everything below the prefix goes, twice does no harm, and the other tenant keeps its own."""
    kept = store.put(OTHER, b"theirs")
    for n in range(5):
        store.put(TENANT, b"x" * (n + 1))
    assert sorted(store.erase(TENANT)) == [1, 2, 3, 4, 5]
    assert list(store.erase(TENANT)) == []
    assert list(store.blobs(TENANT)) == []
    assert store.get(OTHER, kept, LIMIT) == b"theirs"


def test_files_go_in_without_being_in_memory(store: Storage) -> None:
    """In pieces, in a resumable upload where the cloud asks for one; the address is that of the same bytes put."""
    data = os.urandom(1000) * 9_500  # above the 8 MiB of one request
    uri = store.put_file(TENANT, io.BytesIO(data))
    assert uri.endswith(hashlib.sha256(data).hexdigest())
    assert store.put_file(TENANT, io.BytesIO(data)) == uri
    assert b"".join(store.read(TENANT, uri)) == data
    with pytest.raises(PermanentError, match="no such blob"):
        list(store.read(TENANT, uri[:-64] + "0" * 64))


def test_bytes_that_are_not_their_name_are_refused(tmp_path: Path, cloud: Cloud) -> None:
    """Damaged on the disk, or uploaded under a name that is not their own: nobody ever reads them as the real ones."""
    folder, bucket = FolderStorage(tmp_path.as_uri()), CloudStorage(f"gs://{BUCKET}")
    name = f"{TENANT}/{hashlib.sha256(b'genuine').hexdigest()}"
    (tmp_path / str(TENANT)).mkdir()
    (tmp_path / name).write_bytes(b"another")
    cloud.store(name, b"another")
    for store in (folder, bucket):
        assert _refused(store, TENANT, store.uri(TENANT, name[-64:])) == "blob-corrupt"
    # In the cloud, where a member may send bytes to a signed address, the right ones take the place back.
    assert bucket.get(TENANT, bucket.put(TENANT, b"genuine"), LIMIT) == b"genuine"
    bucket._bucket.client.close()


def test_old_generations_go_with_the_tenant(cloud: Cloud) -> None:
    """A bucket that keeps versions keeps none of an erased tenant's."""
    cloud.versioning = True
    store = CloudStorage(f"gs://{BUCKET}")
    uri = store.put(TENANT, b"text")
    seen = store.find(TENANT, uri)
    assert seen is not None
    assert store.delete(seen)
    store.put(TENANT, b"text")
    store.put(OTHER, b"text")
    assert len(list(store.erase(TENANT))) == 2
    assert (cloud.old, len(cloud.live)) == ([], 1)
    store._bucket.client.close()


def test_a_renewal_that_comes_too_often_counts_as_done(cloud: Cloud) -> None:
    """An object bears one change a second; refused for that, somebody else has just renewed it."""
    store = CloudStorage(f"gs://{BUCKET}")
    uri = store.put(TENANT, b"text")
    cloud.busy = 1
    assert store.put(TENANT, b"text") == uri
    assert cloud.busy == 0
    store._bucket.client.close()


def test_drafts_of_the_killed_are_tidied_up(tmp_path: Path) -> None:
    """What a writer left half written goes after a while, what one is writing stays."""
    store = FolderStorage(tmp_path.as_uri())
    uri = store.put(TENANT, b"text")
    draft = tmp_path / str(TENANT) / ".draft"
    draft.write_bytes(b"ha")
    now = datetime.now(UTC)
    assert store.tidy(now - timedelta(days=1)) == 0
    assert store.tidy(now + timedelta(minutes=1)) == 1
    assert _files(tmp_path) == [uri[-64:]]


@pytest.mark.parametrize("kind", ["folder", "cloud", "fake"])
def test_a_delete_never_hits_what_was_just_stored(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """In every round one deletes what it saw while the other stores the same bytes: whoever is first, they are there
    afterwards."""
    store: Storage
    if kind == "cloud":
        request.getfixturevalue("cloud")
        store = CloudStorage(f"gs://{BUCKET}")
    else:
        store = FolderStorage(tmp_path.as_uri()) if kind == "folder" else FakeStorage()
    rounds = 100 if kind == "cloud" else 1000
    together = threading.Barrier(2, timeout=30)
    deleted: list[bool] = []

    def collect() -> None:
        for _ in range(rounds):
            (seen,) = store.blobs(TENANT)
            together.wait()
            deleted.append(store.delete(seen))
            together.wait()

    uri = store.put(TENANT, b"the same bytes")
    with ThreadPoolExecutor(1) as pool:
        collector = pool.submit(collect)
        try:
            for _ in range(rounds):
                together.wait()
                assert store.put(TENANT, b"the same bytes") == uri
                assert store.get(TENANT, uri, LIMIT) == b"the same bytes"
                together.wait()
                assert store.get(TENANT, uri, LIMIT) == b"the same bytes"
        except BaseException:
            together.abort()
            raise
        collector.result()
    assert len(deleted) == rounds
    if isinstance(store, CloudStorage):
        store._bucket.client.close()
