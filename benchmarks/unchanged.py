"""What it costs to send again what has not changed: embedding requests and written rows, against the first ingestion.

    python -m benchmarks.unchanged [--laws 60]

The real handlers of ingest and embed with their parser in a child process, on a PostgreSQL of its own; the models are
asked over HTTP, and what stands at the other end counts the requests. Rows are counted by PostgreSQL (pg_stat). Laws,
a printed PDF and office files are sent four times: as they are, the same bytes as a new version, the same text in other
bytes (which has to be read again to be known), and with one paragraph more. Fails when the second writes a row that
searching reads, or the second or third asks for a vector. The third writes its chunks: other bytes are another version
(their pictures may differ), a version owns its chunks, and their vectors are copied.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from sqlalchemy import text

from benchmarks.parsing import printed_book
from benchmarks.platform import laws
from benchmarks.retrieval_corpus import database, new_tenant
from functions.embed.embedding import embed_chunks
from functions.ingest.ingestion import ingest_document
from functions.ingest.parsing import parse
from functions.ingest.parsing.sandbox import close_children
from shared import database as db
from shared import messaging
from shared.errors import PermanentError, Superseded
from shared.events import DocumentSubmitted, EmbedChunks, decode
from shared.fakes import FakeBus
from shared.services import Services
from shared.settings import get_settings
from tests.chaos.wire import Provider, running_provider

MODEL, DIMENSION, SOURCE = "fake", 512, "upstream"

TABLES = ("chunks", "chunk_terms", "vocabulary", "embeddings")
"""What searching reads; all other tables are `others`: the version that was sent, its outcome, its message."""


@dataclass(frozen=True)
class Cost:
    """What a round took, and what it left: rows inserted, updated or deleted by table."""

    seconds: float
    statements: int
    commits: int
    requests: int
    texts: int
    written: Counter[str]

    @property
    def search_rows(self) -> int:
        """Rows written that searching reads."""
        return sum(self.written[table] for table in TABLES)


def other_bytes(name: str, data: bytes) -> bytes:
    """The same text in other bytes, as an export on another day makes them."""
    if name.endswith(".pdf"):
        return data + b"\n% exported again\n"
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(zipfile.ZipInfo(entry.filename, (2026, 11, 21, 8, 30, 0)), old.read(entry))
    return out.getvalue()


def material(count: int) -> dict[str, bytes]:
    """Laws and office files of ../shared, and a PDF of 100 pages that needs nothing."""
    shared = Path(os.environ.get("NOESIS_SHARED") or Path(__file__).parents[1].parent / "shared")
    office = [
        path
        for ending in ("docx", "xlsx", "pptx")
        for path in sorted((shared / "data/files/office").glob(f"*.{ending}"))[:40]
        if not path.name.startswith("clusterfuzz")
    ]
    files = {"book.pdf": printed_book()} | laws(count) | {path.name: path.read_bytes() for path in office}
    return {name: data for name, data in files.items() if is_readable(name, data)}


def is_readable(name: str, data: bytes) -> bool:
    """Whether a file becomes text: what fails is never unchanged."""
    try:
        parse(data, name=name)
    except PermanentError:
        return False
    return True


class Counting:
    """Statements and commits of this process, by events of its engine."""

    def __init__(self) -> None:
        from sqlalchemy import event

        self.statements = self.commits = 0
        engine = db.application_engine()
        event.listen(engine, "before_cursor_execute", lambda *_: self._add(statements=1))
        event.listen(engine, "commit", lambda _: self._add(commits=1))

    def _add(self, statements: int = 0, commits: int = 0) -> None:
        self.statements += statements
        self.commits += commits


def written() -> Counter[str]:
    """Rows inserted, updated and deleted until now, by table that searching reads; `others` are all others together."""
    # A connection tells its counts at its end.
    db.application_engine().dispose()
    sums: Counter[str] = Counter()
    with db.operator_session() as session:
        rows = session.execute(text("select relname, n_tup_ins + n_tup_upd + n_tup_del from pg_stat_user_tables"))
        for table, count in rows:
            sums[table if table in TABLES else "others"] += count
    return sums


def settled() -> Counter[str]:
    """`written`, once two looks agree: a server process that is just ending may not have told its counts yet."""
    last = written()
    while (now := written()) != last:
        last = now
    return last


def work(bus: FakeBus, services: Services) -> None:
    """Deliver what is on the bus, until nothing is left."""
    while bus.published:
        row = bus.published.pop(0)
        message = decode(row.data.encode(), row.attributes)
        try:
            if isinstance(message, DocumentSubmitted):
                ingest_document(message, SOURCE, services)
            elif isinstance(message, EmbedChunks):
                embed_chunks(message, services)
        except Superseded:
            continue


def send(
    tenant_id: UUID, files: dict[str, bytes], number: int, bus: FakeBus, services: Services, provider: Provider
) -> Cost:
    """Submit all files as version `number` and bring them to their end, one after the other."""
    before, requests, texts = settled(), provider.requests, provider.sold.total()
    count = Counting()
    begun = time.perf_counter()
    for name, data in files.items():
        event = DocumentSubmitted(
            tenant_id=tenant_id,
            external_id=name,
            source_version=number,
            file_name=name,
            uri=services.storage.put(tenant_id, data),
        )
        try:
            ingest_document(event, SOURCE, services)
        except Superseded:
            continue
        work(bus, services)
    seconds = time.perf_counter() - begun
    return Cost(
        seconds,
        count.statements,
        count.commits,
        provider.requests - requests,
        provider.sold.total() - texts,
        settled() - before,
    )


def states(tenant_id: UUID, number: int) -> Counter[str]:
    """How the versions of a round ended."""
    with db.operator_session() as session:
        rows = session.execute(
            text(
                "select state, count(*) from rag.versions where tenant_id = :t and source_version = :n group by state"
            ),
            {"t": tenant_id, "n": number},
        )
        return Counter({row.state: row.count for row in rows})


def report(name: str, cost: Cost, first: Cost, ended: Counter[str]) -> None:
    """One line: time against the first round, what was asked for and written, how it ended."""
    tables = " ".join(f"{table} {cost.written[table]}" for table in (*TABLES, "others"))
    print(
        f"{name:<24} {cost.seconds:7.2f} s  ratio {cost.seconds / first.seconds:5.3f}  embedding requests "
        f"{cost.requests:4} ({cost.texts} texts)  statements {cost.statements:5} commits {cost.commits:4}  "
        f"rows: {tables}  versions {dict(ended)}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", type=int, default=60)
    arguments = parser.parse_args()
    files = material(arguments.laws)
    changes: dict[str, Callable[[str, bytes], bytes]] = {
        "first": lambda _, data: data,
        "the same bytes": lambda _, data: data,
        "the same text": other_bytes,
        "a paragraph more": lambda name, data: data + b"\n\nA paragraph more.\n" if name.endswith(".md") else data,
    }
    with tempfile.TemporaryDirectory() as folder, database(), running_provider(Path(folder), DIMENSION) as provider:
        os.environ |= {
            "LITELLM_URL": provider.url,
            "EMBEDDINGS_MODEL": MODEL,
            "EMBEDDINGS_DIM": str(DIMENSION),
            "BLOB_URL": (Path(folder) / "blobs").as_uri(),
        }
        get_settings.cache_clear()
        bus = FakeBus()
        messaging.use_bus(bus)
        services = Services(get_settings())
        tenant = new_tenant("unchanged", MODEL, DIMENSION)[0].tenant_id
        costs: dict[str, Cost] = {}
        for number, (name, change) in enumerate(changes.items(), start=1):
            changed = {file: change(file, data) for file, data in files.items()}
            costs[name] = send(tenant, changed, number, bus, services, provider)
            report(name, costs[name], costs["first"], states(tenant, number))
        close_children()
        wrong = [name for name in ("the same bytes", "the same text") if costs[name].requests]
        wrong += ["the same bytes: rows"] if costs["the same bytes"].search_rows else []
    if wrong:
        print(f"not free: {', '.join(wrong)}")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main())
