"""Signed uploads to Cloud Storage: by a key or by IAM, bound to what may be sent, and for no longer than that."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import requests
from requests.adapters import HTTPAdapter

from shared.storage import CloudStorage, SignedUpload, UploadTerms
from tests.cloud_storage import BUCKET, SIGNER, Cloud

TENANT = uuid4()
DATA = b"%PDF-1.7 a large file" * 1000
TERMS = UploadTerms(
    hashlib.sha256(DATA).hexdigest(),
    len(DATA),
    "application/pdf",
    base64.b64encode(hashlib.md5(DATA).digest()).decode(),
)
MINUTES = timedelta(minutes=15)
Make = Callable[..., CloudStorage]


class ToLoopback(HTTPAdapter):
    """Carries what is meant for Google's IAM to the server of this test."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.asked: list[str] = []

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self.asked.append(request.url)
        request.url = request.url.replace("https://iamcredentials.googleapis.com", self.url)
        return super().send(request, *args, **kwargs)


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cloud]:
    """Cloud Storage and IAM on loopback, and the key file of an account."""
    made = Cloud()
    (tmp_path / "account.json").write_text(json.dumps(made.service_account()))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", made.url)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "noesis-local")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    yield made
    made.close()


@pytest.fixture
def make(cloud: Cloud) -> Iterator[Make]:
    """Makes stores and closes their clients."""
    stores: list[CloudStorage] = []
    session = requests.Session()
    session.mount("https://iamcredentials.googleapis.com", ToLoopback(cloud.url))

    def made(**options: Any) -> CloudStorage:
        stores.append(CloudStorage(f"gs://{BUCKET}/blobs", session=session, **options))
        return stores[-1]

    yield made
    session.close()
    for store in stores:
        store._bucket.client.close()


def send(upload: SignedUpload, data: bytes = DATA, **changed: str) -> httpx.Response:
    headers = {**upload.headers, **{name.replace("_", "-"): value for name, value in changed.items()}}
    return httpx.request(upload.method, upload.url, headers=headers, content=data)


@pytest.mark.parametrize("signer", ["", SIGNER])
def test_what_was_agreed_may_be_sent(cloud: Cloud, make: Make, signer: str) -> None:
    """Signed by the process's own key or by IAM's signBlob: the bytes arrive under their own address."""
    store = make(signer=signer)
    upload = store.sign_upload(TENANT, TERMS, MINUTES)
    assert upload is not None
    assert cloud.signed == ([SIGNER] if signer else [])
    assert send(upload).status_code == 200
    assert store.get(TENANT, store.uri(TENANT, TERMS.content_hash), len(DATA)) == DATA
    assert send(upload).status_code == 412  # once only: an object that is there is not replaced


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"data": DATA + b"!"}, 400),
        ({"data": DATA[:-1] + b"!"}, 400),
        ({"x_goog_content_length_range": "0,999999999"}, 403),
        ({"x_goog_if_generation_match": "1"}, 403),
        ({"Content_Type": "text/html"}, 403),
        ({"Content_MD5": base64.b64encode(bytes(16)).decode()}, 403),
    ],
    ids=["longer", "other-bytes", "range", "generation", "type", "md5"],
)
def test_nothing_else_may_be_sent(cloud: Cloud, make: Make, change: dict[str, Any], status: int) -> None:
    """More, other bytes, or one of the signed headers changed: refused, and nothing is stored."""
    upload = make().sign_upload(TENANT, TERMS, MINUTES)
    assert upload is not None
    assert send(upload, **change).status_code == status
    assert cloud.live == {}


def test_an_address_is_good_for_its_object_and_its_time(cloud: Cloud, make: Make) -> None:
    """Another name under the same signature is refused; the lifetime is in the address."""
    upload = make().sign_upload(TENANT, TERMS, MINUTES)
    assert upload is not None
    assert "X-Goog-Expires=900" in upload.url
    other = SignedUpload(upload.url.replace(TERMS.content_hash, "0" * 64), "PUT", upload.headers)
    assert send(other).status_code == 403
    over = SignedUpload(upload.url.replace("X-Goog-Expires=900", "X-Goog-Expires=0"), "PUT", upload.headers)
    assert send(over).status_code in (400, 403)
    assert cloud.live == {}


def test_without_anything_to_sign_with_there_is_no_address(
    cloud: Cloud, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Credentials of a person cannot sign: the upload takes the way through web."""
    person = {"type": "authorized_user", "client_id": "1", "client_secret": "1", "refresh_token": "1"}
    (tmp_path / "account.json").write_text(json.dumps(person))
    assert make().sign_upload(TENANT, TERMS, MINUTES) is None
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    assert make().sign_upload(TENANT, TERMS, MINUTES) is None
