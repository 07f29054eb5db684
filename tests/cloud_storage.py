"""As much of Google Cloud Storage (JSON API, V4 signed URLs) and IAM signBlob as the product uses, at the wire.

Google's own client talks to it over HTTP on loopback; what it is asked is kept, so that tests can look at it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlsplit
from uuid import uuid4

import google_crc32c
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

BUCKET = "noesis-blobs"
SIGNER = "signer@noesis.example"


@dataclass
class Object:
    """One generation of an object."""

    data: bytes
    generation: int
    metageneration: int = 1
    updated: datetime = field(default_factory=lambda: datetime.now(UTC))
    metadata: dict[str, str] = field(default_factory=dict)


class Cloud:
    """The server. `page` is how many objects a page of a listing has, `failures` how many uploads fail with 503."""

    def __init__(self, page: int = 1000) -> None:
        self.live: dict[str, Object] = {}
        self.old: list[tuple[str, Object]] = []
        self.versioning = False
        self.page, self.failures, self.busy = page, 0, 0
        self.uploads: list[dict[str, list[str]]] = []
        self.ranges: list[str] = []
        self.listings = 0
        self.signed: list[str] = []
        self.sessions: dict[str, tuple[str, dict[str, list[str]], bytearray]] = {}
        self.lock = threading.RLock()
        self.generation = 1_000
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def objects(self) -> dict[str, bytes]:
        """The live objects' bytes by name."""
        return {name: found.data for name, found in self.live.items()}

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def service_account(self, email: str = SIGNER) -> dict[str, str]:
        """A key file whose tokens come from this server."""
        pem = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return {
            "type": "service_account",
            "project_id": "noesis-local",
            "private_key_id": "1",
            "private_key": pem.decode(),
            "client_email": email,
            "client_id": "1",
            "token_uri": f"{self.url}/token",
        }

    def refuses(self, name: str, query: dict[str, list[str]]) -> bool:
        """Whether a precondition of the request does not hold for the object as it is."""
        found = self.live.get(name)
        for condition, held in (
            ("ifGenerationMatch", found.generation if found else 0),
            ("ifMetagenerationMatch", found.metageneration if found else 0),
        ):
            if condition in query and int(query[condition][0]) != held:
                return True
        return False

    def store(self, name: str, data: bytes) -> Object:
        """A new generation becomes the live one."""
        self.generation += 1
        if self.versioning and name in self.live:
            self.old.append((name, self.live[name]))
        self.live[name] = Object(data, self.generation)
        return self.live[name]


def resource(name: str, found: Object) -> dict[str, Any]:
    """The JSON of an object (https://cloud.google.com/storage/docs/json_api/v1/objects#resource)."""
    return {
        "kind": "storage#object",
        "name": name,
        "bucket": BUCKET,
        "size": str(len(found.data)),
        "generation": str(found.generation),
        "metageneration": str(found.metageneration),
        "updated": found.updated.isoformat().replace("+00:00", "Z"),
        "crc32c": crc32c(found.data),
        "md5Hash": base64.b64encode(hashlib.md5(found.data).digest()).decode(),
        "metadata": found.metadata,
    }


def crc32c(data: bytes) -> str:
    """The checksum as Cloud Storage writes it."""
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def _handler(cloud: Cloud) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            parts, body = urlsplit(self.path), self.body()
            query = parse_qs(parts.query)
            if parts.path == "/token":
                return self.json({"access_token": "a-token", "expires_in": 3600, "token_type": "Bearer"})
            if parts.path.endswith(":signBlob"):
                return self.sign_blob(parts.path, body)
            assert parts.path == f"/upload/storage/v1/b/{BUCKET}/o", parts.path
            if query["uploadType"] == ["resumable"]:
                session = uuid4().hex
                cloud.sessions[session] = (json.loads(body)["name"], query, bytearray())
                return self.answer(200, b"", Location=f"{cloud.url}/resumable/{session}")
            name, data, stated = multipart(self.headers["Content-Type"], body)
            with cloud.lock:
                cloud.uploads.append(query)
                if cloud.failures:
                    cloud.failures -= 1
                    return self.answer(503, b"{}")
                if cloud.refuses(name, query):
                    return self.condition()
                assert stated == crc32c(data)
                return self.json(resource(name, cloud.store(name, data)))

        def do_PUT(self) -> None:
            parts, body = urlsplit(self.path), self.body()
            if parts.path.startswith("/resumable/"):
                return self.resume(parts.path.removeprefix("/resumable/"), body)
            return self.signed_upload(parts.path, parts.query, body)

        def resume(self, session: str, body: bytes) -> None:
            name, query, received = cloud.sessions[session]
            found = re.fullmatch(r"bytes (\d+)-(\d+)/(\*|\d+)", self.headers["Content-Range"])
            assert found
            assert int(found[1]) == len(received)
            received.extend(body)
            if found[3] == "*" or len(received) < int(found[3]):
                return self.answer(308, b"", Range=f"bytes=0-{len(received) - 1}")
            with cloud.lock:
                cloud.uploads.append(query)
                if cloud.refuses(name, query):
                    return self.condition()
                return self.json(resource(name, cloud.store(name, bytes(received))))

        def do_PATCH(self) -> None:
            name, change = self.name_of_object(), json.loads(self.body())
            with cloud.lock:
                if cloud.busy:
                    cloud.busy -= 1
                    return self.error(429, "rateLimitExceeded")
                if name not in cloud.live:
                    return self.error(404, "No such object")
                found = cloud.live[name]
                found.metadata |= change["metadata"]
                found.metageneration += 1
                found.updated = datetime.now(UTC)
                return self.json(resource(name, found))

        def do_DELETE(self) -> None:
            name, query = self.name_of_object(), parse_qs(urlsplit(self.path).query)
            with cloud.lock:
                generation = int(query.get("generation", ["0"])[0])
                if generation and (name not in cloud.live or cloud.live[name].generation != generation):
                    before = len(cloud.old)
                    cloud.old = [one for one in cloud.old if one[1].generation != generation]
                    return self.answer(204, b"") if len(cloud.old) < before else self.error(404, "No such object")
                if name not in cloud.live:
                    return self.error(404, "No such object")
                if cloud.refuses(name, query):
                    return self.condition()
                gone = cloud.live.pop(name)
                if cloud.versioning and not generation:
                    cloud.old.append((name, gone))
                return self.answer(204, b"")

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path == f"/storage/v1/b/{BUCKET}":
                # Google's client asks for the bucket by itself, in the background; our accounts may not read it.
                return self.error(403, "forbidden")
            if parts.path == f"/storage/v1/b/{BUCKET}/o":
                return self.list(parse_qs(parts.query))
            if parts.path.startswith("/storage/v1/"):
                with cloud.lock:
                    name = self.name_of_object()
                    if name not in cloud.live:
                        return self.error(404, "No such object")
                    return self.json(resource(name, cloud.live[name]))
            return self.download(parts.path)

        def download(self, path: str) -> None:
            found = re.fullmatch(rf"/download/storage/v1/b/{BUCKET}/o/([^/?]+)", path)
            assert found, path
            cloud.ranges.append(self.headers.get("Range", ""))
            data = cloud.objects.get(unquote(found.group(1)))
            if data is None:
                return self.answer(404, b"No such object")
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
            assert wanted
            start, end = int(wanted.group(1)), min(int(wanted.group(2)), len(data) - 1)
            if start >= len(data):
                return self.answer(416, b"", **{"Content-Range": f"bytes */{len(data)}"})
            return self.answer(
                206,
                data[start : end + 1],
                **{"Content-Range": f"bytes {start}-{end}/{len(data)}", "X-Goog-Hash": f"crc32c={crc32c(data)}"},
            )

        def list(self, query: dict[str, list[str]]) -> None:
            prefix, start = query.get("prefix", [""])[0], query.get("startOffset", [""])[0]
            with cloud.lock:
                cloud.listings += 1
                every = list(cloud.live.items()) + (
                    cloud.old if query.get("versions", ["false"])[0].lower() == "true" else []
                )
                found = sorted(
                    ((name, one) for name, one in every if name.startswith(prefix) and name >= start),
                    key=lambda pair: (pair[0], pair[1].generation),
                )
            # A page goes on behind a name, as the real one does: what is deleted meanwhile shifts nothing.
            token = query.get("pageToken", [""])[0]
            left = [pair for pair in found if not token or f"{pair[0]}#{pair[1].generation}" > token]
            page = left[: cloud.page]
            answer: dict[str, Any] = {"items": [resource(*pair) for pair in page]}
            if len(left) > len(page):
                answer["nextPageToken"] = f"{page[-1][0]}#{page[-1][1].generation}"
            self.json(answer)

        def sign_blob(self, path: str, body: bytes) -> None:
            email = path.rpartition("/")[2].removesuffix(":signBlob")
            assert self.headers["Authorization"] == "Bearer a-token"
            if email != SIGNER:
                return self.error(403, "iam.serviceAccounts.signBlob denied")
            cloud.signed.append(email)
            message = base64.b64decode(json.loads(body)["payload"])
            signature = cloud.key.sign(message, padding.PKCS1v15(), hashes.SHA256())
            return self.json({"keyId": "1", "signedBlob": base64.b64encode(signature).decode()})

        def signed_upload(self, path: str, query: str, body: bytes) -> None:
            """What Cloud Storage checks of a V4 signed PUT; headers of meaning are honoured only when signed."""
            given = dict(parse_qsl(query))
            signed = given["X-Goog-SignedHeaders"].split(";")
            began = datetime.strptime(given["X-Goog-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            if datetime.now(UTC) > began + timedelta(seconds=int(given["X-Goog-Expires"])):
                return self.answer(400, b"<Error><Code>ExpiredToken</Code></Error>")
            signature = bytes.fromhex(given.pop("X-Goog-Signature"))
            canonical = "\n".join(
                [
                    "PUT",
                    path,
                    "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in sorted(given.items())),
                    *(f"{name}:{(self.headers[name] or '').strip()}" for name in signed),
                    "",
                    ";".join(signed),
                    "UNSIGNED-PAYLOAD",
                ]
            )
            scope = given["X-Goog-Credential"].partition("/")[2]
            digest = hashlib.sha256(canonical.encode()).hexdigest()
            message = f"GOOG4-RSA-SHA256\n{given['X-Goog-Date']}\n{scope}\n{digest}"
            try:
                cloud.key.public_key().verify(signature, message.encode(), padding.PKCS1v15(), hashes.SHA256())
            except InvalidSignature:
                return self.answer(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
            low, _, high = (self.headers["x-goog-content-length-range"] or "0,").partition(",")
            if not int(low) <= len(body) <= int(high or len(body)):
                return self.answer(400, b"<Error><Code>EntityTooLarge</Code></Error>")
            md5 = self.headers["Content-MD5"]
            if md5 and md5 != base64.b64encode(hashlib.md5(body).digest()).decode():
                return self.answer(400, b"<Error><Code>BadDigest</Code></Error>")
            name = unquote(path.removeprefix(f"/{BUCKET}/"))
            with cloud.lock:
                if self.headers["x-goog-if-generation-match"] == "0" and name in cloud.live:
                    return self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                cloud.store(name, body)
            return self.answer(200, b"")

        def name_of_object(self) -> str:
            found = re.fullmatch(rf"/storage/v1/b/{BUCKET}/o/([^/?]+)", urlsplit(self.path).path)
            assert found, self.path
            return unquote(found.group(1))

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def condition(self) -> None:
            self.error(412, "conditionNotMet")

        def error(self, status: int, message: str) -> None:
            self.answer(status, json.dumps({"error": {"code": status, "message": message}}).encode())

        def json(self, body: dict[str, Any]) -> None:
            self.answer(200, json.dumps(body).encode(), **{"Content-Type": "application/json"})

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    return Handler


def multipart(content_type: str, body: bytes) -> tuple[str, bytes, str]:
    """Name, bytes and stated checksum of a multipart upload."""
    boundary = re.search(rb"boundary=[\"']?([^\"';]+)", content_type.encode())
    assert boundary
    _, metadata, media, end = (part for part in body.split(b"--" + boundary.group(1)))
    assert end.strip() == b"--"
    stated: dict[str, Any] = json.loads(metadata.partition(b"\r\n\r\n")[2])
    return stated["name"], media.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n"), stated["crc32c"]
