"""Blobs: the same bytes once, a tenant's only for that tenant, whole or not there; in a folder and in the cloud."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import UUID, uuid4

import google_crc32c
import pytest

from shared.errors import PermanentError, SettingsError
from shared.fakes import FakeStorage
from shared.settings import Settings
from shared.storage import CloudStorage, FolderStorage, Storage, make_storage

TENANT, OTHER = uuid4(), uuid4()
LIMIT = 1_000_000
BUCKET = "noesis-blobs"


class Cloud:
    """As much of Cloud Storage's JSON API as the product uses, at the wire; objects are {name: bytes}."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.uploads: list[dict[str, list[str]]] = []
        self.ranges: list[str] = []
        self.failures = 0
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                parts = urlsplit(self.path)
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert parts.path == f"/upload/storage/v1/b/{BUCKET}/o"
                query = parse_qs(parts.query)
                cloud.uploads.append(query)
                if cloud.failures:
                    cloud.failures -= 1
                    return self.answer(503, b"{}")
                name, data, stated = cloud.parts(self.headers["Content-Type"], body)
                if query.get("ifGenerationMatch") == ["0"] and name in cloud.objects:
                    return self.answer(412, b'{"error": {"code": 412, "message": "conditionNotMet"}}')
                assert stated == cloud.crc32c(data)
                cloud.objects[name] = data
                answer = {"name": name, "bucket": BUCKET, "size": str(len(data)), "crc32c": stated}
                return self.answer(200, json.dumps(answer).encode())

            def do_GET(self) -> None:
                if urlsplit(self.path).path == f"/storage/v1/b/{BUCKET}":
                    # Google's client asks for the bucket by itself, in the background; our accounts may not read it.
                    return self.answer(403, b'{"error": {"code": 403, "message": "forbidden"}}')
                found = re.fullmatch(rf"/download/storage/v1/b/{BUCKET}/o/([^/?]+)", urlsplit(self.path).path)
                assert found, self.path
                cloud.ranges.append(self.headers.get("Range", ""))
                data = cloud.objects.get(unquote(found.group(1)))
                if data is None:
                    return self.answer(404, b"No such object")
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
                assert wanted
                start, end = int(wanted.group(1)), min(int(wanted.group(2)), len(data) - 1)
                if start >= len(data):
                    return self.answer(416, b"", **{"Content-Range": f"bytes */{len(data)}"})
                hashes = {"X-Goog-Hash": f"crc32c={cloud.crc32c(data)}"}
                return self.answer(
                    206, data[start : end + 1], **{"Content-Range": f"bytes {start}-{end}/{len(data)}"}, **hashes
                )

            def answer(self, status: int, body: bytes, **headers: str) -> None:
                self.send_response(status)
                for key, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @staticmethod
    def crc32c(data: bytes) -> str:
        return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()

    @staticmethod
    def parts(content_type: str, body: bytes) -> tuple[str, bytes, str]:
        """Name, bytes and stated checksum of a multipart upload."""
        boundary = re.search(rb"boundary=[\"']?([^\"';]+)", content_type.encode())
        assert boundary
        _, metadata, media, end = (part for part in body.split(b"--" + boundary.group(1)))
        assert end.strip() == b"--"
        stated: dict[str, Any] = json.loads(metadata.partition(b"\r\n\r\n")[2])
        return stated["name"], media.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n"), stated["crc32c"]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """A small Cloud Storage on loopback; STORAGE_EMULATOR_HOST is how Google's client finds it."""
    made = Cloud()
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
