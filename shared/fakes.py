"""The twins of the adapters: in memory, deterministic, shipped with the product so that tests need no mocks."""

from __future__ import annotations

import hashlib
import math
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import IO, Any
from uuid import UUID

from shared.errors import NoesisError
from shared.llm import Abilities, ChatReply, Embedded, InputType, ToolCall
from shared.messaging import Outgoing
from shared.rerankings import Reranked
from shared.services import Clock
from shared.storage import Blob, SignedUpload, UploadTerms, corrupt, key, missing, own_key, too_large


class FakeClock(Clock):
    """A clock that is moved by hand."""

    def __init__(self, start: datetime | None = None) -> None:
        self._now = start or datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        """Where the clock stands."""
        return self._now

    def advance(self, by: timedelta) -> None:
        """Move the clock."""
        self._now += by


@dataclass
class FakeBus:
    """Keeps what was published; `down` makes it refuse everything, `gone` names topics that do not exist."""

    published: list[Outgoing] = field(default_factory=list)
    later: list[Outgoing] = field(default_factory=list)
    down: bool = False
    gone: set[str] = field(default_factory=set)

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """Take all messages, or none."""
        if self.down:
            raise ConnectionError("the bus is down")
        if any(message.topic in self.gone for message in messages):
            from google.api_core.exceptions import NotFound  # late: only tests of a missing topic need it

            raise NotFound("Resource not found (resource=topic).")
        self.published.extend(messages)

    def publish_later(self, message: Outgoing) -> None:
        """Keep a message for later; naming it twice is once."""
        if self.down:
            raise ConnectionError("the bus is down")
        if message not in self.later:
            self.later.append(message)

    def names(self) -> list[str]:
        """The names of what was published, in order."""
        return [message.attributes["name"] for message in self.published]


@dataclass
class FakeStorage:
    """Blobs in a dictionary, with the same rules about whose they are; `clock` tells when one was changed."""

    blobs_by_key: dict[str, bytes] = field(default_factory=dict)
    root: str = "fake://blobs"
    clock: Clock = field(default_factory=Clock)
    signs: bool = False
    _changes: dict[str, tuple[int, datetime]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, tenant_id: UUID, data: bytes) -> str:
        """Store bytes and return their URI."""
        name = key(tenant_id, data)
        with self._lock:
            self.blobs_by_key[name] = data
            self._change(name)
        return f"{self.root}/{name}"

    def put_file(self, tenant_id: UUID, file: IO[bytes]) -> str:
        """Store a file and return its URI."""
        file.seek(0)
        return self.put(tenant_id, file.read())

    def get(self, tenant_id: UUID, uri: str, limit: int) -> bytes:
        """The bytes behind a URI of this tenant."""
        name = own_key(self.root, tenant_id, uri)
        data = self.blobs_by_key.get(name)
        if data is None:
            raise missing()
        if len(data) > limit:
            raise too_large(limit)
        if key(tenant_id, data) != name:
            raise corrupt()
        return data

    def read(self, tenant_id: UUID, uri: str) -> Iterator[bytes]:
        """The bytes in one piece."""
        data = self.blobs_by_key.get(own_key(self.root, tenant_id, uri))
        if data is None:
            raise missing()
        yield data

    def uri(self, tenant_id: UUID, content_hash: str) -> str:
        """The URI of a content."""
        return f"{self.root}/{tenant_id}/{content_hash}"

    def find(self, tenant_id: UUID, uri: str) -> Blob | None:
        """What is behind a URI."""
        return self._seen(own_key(self.root, tenant_id, uri))

    def refresh(self, tenant_id: UUID, uri: str) -> Blob | None:
        """Make a blob new again."""
        name = own_key(self.root, tenant_id, uri)
        with self._lock:
            if name in self.blobs_by_key:
                self._change(name)
        return self._seen(name)

    def blobs(self, tenant_id: UUID | None = None, after: str = "") -> Iterator[Blob]:
        """All blobs in order."""
        for name in sorted(self.blobs_by_key):
            if name > after and name.startswith(f"{tenant_id}/" if tenant_id else "") and (blob := self._seen(name)):
                yield blob

    def delete(self, blob: Blob) -> bool:
        """Delete a blob that is as it was seen."""
        with self._lock:
            return self._seen(blob.key) == blob and self.blobs_by_key.pop(blob.key, None) is not None

    def erase(self, tenant_id: UUID) -> Iterator[int]:
        """Delete what is below a tenant's prefix."""
        for blob in list(self.blobs(tenant_id)):
            self.blobs_by_key.pop(blob.key, None)
            yield blob.size

    def tidy(self, before: datetime) -> int:
        """Nothing is ever half written."""
        return 0

    def sign_upload(self, tenant_id: UUID, terms: UploadTerms, lifetime: timedelta) -> SignedUpload | None:
        """An address that nobody listens at, if the twin `signs`."""
        return SignedUpload(f"https://fake.example/{tenant_id}/{terms.content_hash}") if self.signs else None

    def _change(self, name: str) -> None:
        self._changes[name] = (self._changes.get(name, (0, None))[0] + 1, self.clock.now())

    def _seen(self, name: str) -> Blob | None:
        data = self.blobs_by_key.get(name)
        if data is None:
            return None
        change, when = self._changes.get(name, (0, datetime(2026, 1, 1, tzinfo=UTC)))
        return Blob(UUID(name[:36]), name[37:], len(data), str(change), when)


_WORD = re.compile(r"\w+")


@dataclass
class FakeModels:
    """Vectors from hashed words (texts that share words are near), and a chat that answers from a script.

    `failures` are raised one by one before anything succeeds; `embedded` lists every text that was paid for. A reply
    is a text, the tool calls the model wants, or a whole ChatReply; `offered` are the names of the tools it was shown;
    `reranked` lists every document that was judged.
    """

    replies: list[str | ChatReply | Sequence[ToolCall]] = field(default_factory=list)
    failures: list[NoesisError] = field(default_factory=list)
    embedded: list[str] = field(default_factory=list)
    asked: list[list[dict[str, Any]]] = field(default_factory=list)
    offered: list[list[str]] = field(default_factory=list)
    able: Abilities = field(default_factory=Abilities)
    reranked: list[str] = field(default_factory=list)

    def abilities(self) -> Abilities:
        """What the script's model can do."""
        return self.able

    def embed(
        self,
        texts: Sequence[str],
        *,
        model: str,
        dimension: int,
        input_type: InputType,
        seconds: float | None = None,
    ) -> list[list[float]]:
        """A unit vector a text: its words hashed into `dimension` bins."""
        return self.embed_counted(texts, model=model, dimension=dimension, input_type=input_type).vectors

    def embed_counted(
        self,
        texts: Sequence[str],
        *,
        model: str,
        dimension: int,
        input_type: InputType,
        seconds: float | None = None,
    ) -> Embedded:
        """The same, with a token a word."""
        if self.failures:
            raise self.failures.pop(0)
        self.embedded.extend(texts)
        return Embedded([hashed_vector(text, dimension) for text in texts], sum(len(text.split()) for text in texts))

    def rerank(self, question: str, documents: Sequence[str], *, model: str) -> Reranked:
        """The share of the question's words that a document has; a token a word."""
        if self.failures:
            raise self.failures.pop(0)
        self.reranked.extend(documents)
        asked = set(_WORD.findall(question.lower()))
        shares = [len(asked & set(_WORD.findall(text.lower()))) / max(len(asked), 1) for text in documents]
        return Reranked(shares, sum(len(text.split()) for text in (question, *documents)))

    def chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] = (),
        max_tokens: int | None = None,
    ) -> Iterator[str | ChatReply]:
        """The next scripted reply, word by word, then the ChatReply; a token a word."""
        if self.failures:
            raise self.failures.pop(0)
        self.asked.append(list(messages))
        self.offered.append([tool["function"]["name"] for tool in tools])
        reply = self.replies.pop(0) if self.replies else "NO_EVIDENCE"
        if isinstance(reply, ChatReply):
            whole = reply
        elif isinstance(reply, str):
            whole = ChatReply(reply, "fake", words_in(messages), len(reply.split()))
        else:
            whole = ChatReply("", "fake", words_in(messages), len(reply), tuple(reply), "tool_calls")
        yield from re.findall(r"\S+\s*", whole.text)
        yield whole


def words_in(messages: Sequence[dict[str, Any]]) -> int:
    """What a scripted model counts as input: the words of all messages."""
    return sum(len(str(message.get("content") or "").split()) for message in messages)


def hashed_vector(text: str, dimension: int) -> list[float]:
    """A deterministic unit vector of a text's words."""
    vector = [0.0] * dimension
    for word in _WORD.findall(text.lower()) or ["empty"]:
        vector[int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") % dimension] += 1.0
    norm = math.sqrt(sum(x * x for x in vector))
    return [x / norm for x in vector]
