"""The twins of the adapters: in memory, deterministic, shipped with the product so that tests need no mocks."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

from shared.errors import NoesisError
from shared.llm import ChatReply, Embedded, InputType
from shared.messaging import Outgoing
from shared.services import Clock
from shared.storage import key, missing, own_key, too_large


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
    """Keeps what was published; `down` makes it refuse."""

    published: list[Outgoing] = field(default_factory=list)
    later: list[Outgoing] = field(default_factory=list)
    down: bool = False

    def publish(self, messages: Sequence[Outgoing]) -> None:
        """Take all messages, or none."""
        if self.down:
            raise ConnectionError("the bus is down")
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
    """Blobs in a dictionary, with the same rules about whose they are."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    root: str = "fake://blobs"

    def put(self, tenant_id: UUID, data: bytes) -> str:
        """Store bytes and return their URI."""
        name = key(tenant_id, data)
        self.blobs[name] = data
        return f"{self.root}/{name}"

    def get(self, tenant_id: UUID, uri: str, limit: int) -> bytes:
        """The bytes behind a URI of this tenant."""
        data = self.blobs.get(own_key(self.root, tenant_id, uri))
        if data is None:
            raise missing()
        if len(data) > limit:
            raise too_large(limit)
        return data


_WORD = re.compile(r"\w+")


@dataclass
class FakeModels:
    """Vectors from hashed words (texts that share words are near), and a chat that answers from a script.

    `failures` are raised one by one before anything succeeds; `embedded` lists every text that was paid for.
    """

    replies: list[str] = field(default_factory=list)
    failures: list[NoesisError] = field(default_factory=list)
    embedded: list[str] = field(default_factory=list)
    asked: list[list[dict[str, str]]] = field(default_factory=list)

    def embed(self, texts: Sequence[str], *, model: str, dimension: int, input_type: InputType) -> list[list[float]]:
        """A unit vector a text: its words hashed into `dimension` bins."""
        return self.embed_counted(texts, model=model, dimension=dimension, input_type=input_type).vectors

    def embed_counted(self, texts: Sequence[str], *, model: str, dimension: int, input_type: InputType) -> Embedded:
        """The same, with a token a word."""
        if self.failures:
            raise self.failures.pop(0)
        self.embedded.extend(texts)
        return Embedded([hashed_vector(text, dimension) for text in texts], sum(len(text.split()) for text in texts))

    def chat(self, messages: Sequence[dict[str, str]]) -> Iterator[str | ChatReply]:
        """The next scripted reply, word by word, then the ChatReply."""
        if self.failures:
            raise self.failures.pop(0)
        self.asked.append(list(messages))
        reply = self.replies.pop(0) if self.replies else "NO_EVIDENCE"
        yield from re.findall(r"\S+\s*", reply)
        yield ChatReply(reply, "fake", sum(len(m["content"].split()) for m in messages), len(reply.split()))


def hashed_vector(text: str, dimension: int) -> list[float]:
    """A deterministic unit vector of a text's words."""
    vector = [0.0] * dimension
    for word in _WORD.findall(text.lower()) or ["empty"]:
        vector[int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") % dimension] += 1.0
    norm = math.sqrt(sum(x * x for x in vector))
    return [x / norm for x in vector]
