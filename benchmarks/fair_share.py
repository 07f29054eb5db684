"""How long three documents of a small tenant take while a large one has just sent thousands.

    .venv/bin/python -m benchmarks.fair_share [--documents 600] [--share 32] [--only alone|queue|shares]

The real handlers of ingest and embed on PostgreSQL; a bus with one line a topic for all tenants, first in, first out;
two workers each, as on a laptop. Parsing runs in the worker (no child process) and takes a fixed time more, an
embedding request takes a fixed time: what is measured is the order of things, not parser or model.
"""

from __future__ import annotations

import argparse
import base64
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from benchmarks.retrieval_corpus import database
from functions.embed.embedding import embed_chunks
from functions.ingest import ingestion, parsing
from shared import database as db
from shared import messaging
from shared.errors import Superseded
from shared.events import DocumentSubmitted, EmbedChunks, decode
from shared.fakes import FakeModels, FakeStorage
from shared.llm import Embedded
from shared.messaging import Outgoing
from shared.retrieval.spaces import activate_first, ensure_space
from shared.services import Services
from shared.settings import get_settings
from shared.tenants.directory import create_tenant

WORKERS = 2
PARSE_SECONDS = 0.05
EMBED_SECONDS = 0.1
MODEL, DIMENSION = "fake", 64
NEVER = 1_000_000


@dataclass
class Line:
    """A bus with one line a topic."""

    topics: dict[str, queue.SimpleQueue[Outgoing | None]] = field(
        default_factory=lambda: {"documents-upstream": queue.SimpleQueue(), "embed-chunks": queue.SimpleQueue()}
    )

    def publish(self, messages: Sequence[Outgoing]) -> None:
        for message in messages:
            if message.topic in self.topics:
                self.topics[message.topic].put(message)

    def publish_later(self, message: Outgoing) -> None:
        raise AssertionError("nothing is postponed here")


class SlowModels(FakeModels):
    def embed_counted(self, *args: Any, **kwargs: Any) -> Embedded:
        time.sleep(EMBED_SECONDS)
        return super().embed_counted(*args, **kwargs)


def parse_here(data: bytes, *, name: str, media_type: str | None, **_limits: object) -> Any:
    time.sleep(PARSE_SECONDS)
    return parsing.parse(data, name=name, media_type=media_type)


def make_tenant(slug: str) -> UUID:
    with db.operator_session() as operator:
        tenant = create_tenant(operator, f"{slug}-{uuid4().hex[:8]}", slug, f"admin@{slug}.example")
        activate_first(operator, tenant.tenant_id, ensure_space(operator, MODEL, DIMENSION))
    return tenant.tenant_id


def submission(tenant_id: UUID, number: int) -> Outgoing:
    content = f"Document {number}.\n\nIt says something of its own: {uuid4().hex}."
    event = DocumentSubmitted(
        tenant_id=tenant_id,
        external_id=f"doc-{number}",
        source_version=1,
        content=base64.b64encode(content.encode()).decode(),
        file_name=f"doc-{number}.txt",
    )
    return Outgoing(tenant_id, event.event_id, event.topic, event.data().decode(), event.attributes(), None)


def work(line: Line, topic: str, services: Services) -> None:
    while (message := line.topics[topic].get()) is not None:
        event = decode(message.data.encode(), message.attributes)
        try:
            if isinstance(event, DocumentSubmitted):
                ingestion.ingest_document(event, "upstream", services)
            elif isinstance(event, EmbedChunks):
                embed_chunks(event, services)
        except Superseded:
            continue


def searchable(tenant_id: UUID) -> int:
    with db.operator_session() as session:
        found: int = session.execute(
            text("select count(*) from rag.documents where tenant_id = :t and state = 'searchable'"), {"t": tenant_id}
        ).scalar_one()
    return found


def measure(large: int, share: int) -> tuple[float, int, float]:
    """Seconds until the small tenant's three are searchable; how many of the large one's were; its rate meanwhile."""
    line = Line()
    messaging.use_bus(line)
    settings = get_settings().model_copy(update={"documents_in_progress": share})
    services = Services(settings, _storage=FakeStorage(), _models=SlowModels())
    big, small = make_tenant("large"), make_tenant("small")
    line.publish([submission(big, n) for n in range(large)])
    line.publish([submission(small, n) for n in range(3)])
    threads = [
        threading.Thread(target=work, args=(line, topic, services)) for topic in line.topics for _ in range(WORKERS)
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    while searchable(small) < 3:
        time.sleep(0.05)
    took = time.monotonic() - began
    done = searchable(big)
    for lane in line.topics.values():
        while not lane.empty():
            lane.get()
        for _ in range(WORKERS):
            lane.put(None)
    for thread in threads:
        thread.join()
    return took, done, done / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=600, help="of the large tenant")
    parser.add_argument("--share", type=int, default=32)
    parser.add_argument("--only", choices=["alone", "queue", "shares"])
    arguments = parser.parse_args()
    cases = {
        "alone": (0, arguments.share),
        "queue": (arguments.documents, NEVER),
        "shares": (arguments.documents, arguments.share),
    }
    vars(ingestion)["parse_in_child"] = parse_here
    with database():
        for name, (large, share) in cases.items():
            if arguments.only in (None, name):
                took, done, rate = measure(large, share)
                print(f"{name:7} large tenant {large:6} documents, share {share:7}: three documents searchable after "
                      f"{took:6.1f} s; of the large tenant {done} by then ({rate:.1f}/s)", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
