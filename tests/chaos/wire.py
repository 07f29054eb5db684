"""What stands at the other end of the wire: a bus that keeps messages as files, and a provider that counts.

Both survive the worker that uses them, as Pub/Sub and a provider do. The real bus is met by test_random_kills.py.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

from local.bus.tokens import Tokens
from shared.fakes import hashed_vector
from shared.messaging import Outgoing
from tests.chaos.crash_points import CrashPoints
from tests.loopback import served

ISSUER = "https://bus.test.example"
ACCOUNT = "pubsub-push@test.example"
AUDIENCE = "https://service.test.example"
PUSHES = {
    "documents-upstream": ("ingest", "/sources/upstream", "ingest-upstream"),
    "documents-web": ("ingest", "/sources/web", "ingest-web"),
    "embed-chunks": ("embed", "/", "embed"),
    "answer-question": ("agent", "/", "agent"),
    "run-job": ("maintenance", "/", "maintenance"),
    "dead-letters": ("maintenance", "/dead-letters", "dead-letter-archive"),
}
"""Topic → service, path and subscription, as terraform/topology.yaml has them; other topics only have listeners."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A message that waits to be delivered."""

    name: str
    topic: str
    data: str
    attributes: dict[str, str]
    attempts: int = 0
    later: bool = False
    """Waits for a time that has not come."""

    def push(self) -> dict[str, Any]:
        """The body of the push request."""
        data = base64.b64encode(self.data.encode()).decode()
        message = {"data": data, "attributes": self.attributes, "messageId": self.name}
        return {"message": message, "subscription": f"projects/test/subscriptions/{PUSHES[self.topic][2]}"}


class FileBus:
    """At least once, in order of publishing, by files: `waiting/` until acknowledged, `heard/` for listeners."""

    def __init__(self, folder: Path, points: CrashPoints | None = None) -> None:
        self._waiting, self._heard = folder / "waiting", folder / "heard"
        self._points = points or CrashPoints()
        for each in (self._waiting, self._heard):
            each.mkdir(parents=True, exist_ok=True)
        self._numbers = itertools.count(1 + max((int(p.name[:6]) for p in folder.glob("*/*.json")), default=0))

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """Take messages one by one; each is confirmed when its file has its name."""
        for message in messages:
            with self._points.step("publish", message.topic):
                self._keep(message)

    def publish_later(self, message: Outgoing) -> None:
        """The same, but not to be delivered before `ripen`."""
        with self._points.step("task", message.topic):
            self._keep(message, later=True)

    def ripen(self) -> None:
        """The time has come for what was published for later."""
        for kept in self.waiting():
            if kept.later:
                self._write(self._waiting, replace(kept, later=False))

    def _keep(self, message: Outgoing, later: bool = False) -> None:
        name = f"{next(self._numbers):06d}-{message.event_id}"
        folder = self._waiting if message.topic in PUSHES else self._heard
        self._write(folder, Kept(name, message.topic, message.data, message.attributes, 0, later))

    def _write(self, folder: Path, kept: Kept) -> None:
        draft = folder / f".{kept.name}"
        draft.write_text(json.dumps(asdict(kept)), encoding="utf-8")
        os.rename(draft, folder / f"{kept.name}.json")

    def waiting(self) -> list[Kept]:
        """What is not acknowledged yet, oldest first."""
        return [Kept(**json.loads(path.read_text("utf-8"))) for path in sorted(self._waiting.glob("*.json"))]

    def heard(self) -> list[dict[str, Any]]:
        """The bodies of the events that went out to listeners."""
        kept = [Kept(**json.loads(path.read_text("utf-8"))) for path in sorted(self._heard.glob("*.json"))]
        return [json.loads(one.data) for one in kept]

    def acknowledge(self, kept: Kept) -> None:
        """Never deliver it again; somebody else may have said so."""
        (self._waiting / f"{kept.name}.json").unlink(missing_ok=True)

    def refuse(self, kept: Kept) -> None:
        """Deliver it again; after five times it goes to the dead letters, as the topology says."""
        tried = kept.attempts + 1
        if tried < 5 or kept.topic == "dead-letters":
            self._write(self._waiting, Kept(kept.name, kept.topic, kept.data, kept.attributes, tried))
            return
        source = {
            "CloudPubSubDeadLetterSourceSubscription": PUSHES[kept.topic][2],
            "CloudPubSubDeadLetterSourceDeliveryCount": str(tried),
        }
        self._write(self._waiting, Kept(kept.name, "dead-letters", kept.data, kept.attributes | source))


@dataclass
class Provider:
    """Embeddings in the wire form of LiteLLM, and the keys of the bus; counts what it sells."""

    tokens: Tokens
    dimension: int
    url: str = ""
    sold: Counter[str] = field(default_factory=Counter)
    """How often a vector of each text went out."""
    requests: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    before_answer: Callable[[list[str]], None] = lambda _texts: None
    """Called before an answer goes out, in the request's thread."""

    def bearer(self, topic: str) -> str:
        """The token of a push of a topic."""
        return self.tokens.bearer(AUDIENCE + PUSHES[topic][1])

    def bearers(self) -> dict[str, str]:
        """The tokens of all topics."""
        return {topic: self.bearer(topic) for topic in PUSHES}

    def sold_with(self, marker: str) -> Counter[str]:
        """What was sold of the texts that carry a marker."""
        with self.lock:
            return Counter({text: count for text, count in self.sold.items() if marker in text})

    def answer(self, texts: list[str]) -> dict[str, Any]:
        """The answer to an embedding request."""
        self.before_answer(texts)
        with self.lock:
            self.sold.update(texts)
            self.requests += 1
        rows = [
            {"object": "embedding", "index": number, "embedding": hashed_vector(text, self.dimension)}
            for number, text in enumerate(texts)
        ]
        usage = sum(map(price_in_tokens, texts))
        return {
            "object": "list", "model": "fake", "data": rows,
            "usage": {"prompt_tokens": usage, "total_tokens": usage},
        }  # fmt: skip


def price_in_tokens(text: str) -> int:
    """What the provider counts for a text: a token a word."""
    return len(text.split())


class _Handler(BaseHTTPRequestHandler):
    provider: Provider
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(self.provider.tokens.jwks())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(self.provider.answer(body["input"]))

    def _send(self, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        return


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        return  # clients are killed while they are answered


@contextmanager
def running_provider(folder: Path, dimension: int, issuer: str = ISSUER) -> Iterator[Provider]:
    """A provider on a free port; its signing key is kept in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    provider = Provider(Tokens(folder, issuer, ACCOUNT), dimension)
    handler = type("Bound", (_Handler,), {"provider": provider})
    with served(_Server(("127.0.0.1", 0), handler)) as provider.url:
        yield provider


def outgoing(message: Any, topic: str = "") -> Outgoing:
    """A message as the bus takes it."""
    tenant_id: UUID = message.tenant_id
    return Outgoing(
        tenant_id, message.event_id, topic or message.topic, message.data().decode(), message.attributes(), None
    )
