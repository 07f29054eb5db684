"""Rows a second through the product's write path against raw COPY BINARY of the same rows, in one run.

    python -m benchmarks.writing [--chunks 4000]

A PostgreSQL of its own with the real schema. Chunks and vectors are written as ingest and embed write them: as the
application role, under row-level security, with every key, index and foreign key, in transactions of a document and a
batch. The peer is the owner's COPY BINARY of the same rows into tables of the same columns and indexes, without foreign
keys and row-level security, in transactions of the same size and over a connection as quick as ours (TCP_NODELAY:
without it many of its transactions wait 40 ms for an acknowledgement, which is not COPY).

Chunks are written twice: without the words that lexical search needs (our trigger off), and with them. "stored and
embedded" is what the product does with a document: chunks with words, and their vectors. Its peer copies every row that
ours leaves behind, those of the words too, ready made: nothing analyses a text there. What PostgreSQL's own full text
search costs instead (a generated tsvector with a GIN index) is told beside it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import socket
import struct
import time
from array import array
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from benchmarks.retrieval_corpus import database
from shared.documents.storing import CHUNK_COLUMNS, NewChunk

DOCUMENT, BATCH, DIMENSION = 40, 128, 512


def texts(count: int) -> list[str]:
    """Chunks of real laws, or of words from a list of our own where the laws are absent."""
    from functions.ingest.chunking import chunk_document
    from functions.ingest.parsing import parse

    shared = Path(os.environ.get("NOESIS_SHARED") or Path(__file__).parents[1].parent / "shared")
    found: list[str] = []
    for path in sorted((shared / "data/laws").glob("*.md")):
        found += [
            chunk.text for chunk in chunk_document(parse(path.read_bytes(), name=path.name), size=800, overlap=80)
        ]
        if len(found) >= count:
            return found[:count]
    draw = random.Random(1337)
    words = [f"wort{n}" for n in range(5_000)]
    return found + [" ".join(draw.choices(words, k=450)) for _ in range(count - len(found))]


def binary(rows: Sequence[Sequence[Any]]) -> bytes:
    """Rows in COPY's binary format (PostgreSQL manual, COPY, "Binary Format")."""
    out = io.BytesIO()
    out.write(b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0))
    for row in rows:
        out.write(struct.pack(">h", len(row)))
        for value in row:
            packed = _packed(value)
            out.write(struct.pack(">i", len(packed)) + packed)
    out.write(struct.pack(">h", -1))
    return out.getvalue()


def _packed(value: Any) -> bytes:
    if isinstance(value, UUID):
        return value.bytes
    if isinstance(value, int):
        return struct.pack(">i", value)
    if isinstance(value, dict):
        return b"\x01" + json.dumps(value, ensure_ascii=False).encode()
    if isinstance(value, list) and value and isinstance(value[0], float):
        return struct.pack(f">hh{len(value)}f", len(value), 0, *value)
    if isinstance(value, array):
        head = struct.pack(">iii", 1 if value else 0, 0, 23) + (struct.pack(">ii", len(value), 1) if value else b"")
        return head + b"".join(struct.pack(">ii", 4, number) for number in value)
    if isinstance(value, list):
        packed = [str(item).encode() for item in value]
        head = struct.pack(">iii", 1 if packed else 0, 0, 25) + (struct.pack(">ii", len(packed), 1) if packed else b"")
        return head + b"".join(struct.pack(">i", len(item)) + item for item in packed)
    return str(value).encode()


def copy_binary(owner: Connection, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """The physical limit: one COPY BINARY."""
    driver = owner.connection.driver_connection
    assert driver is not None
    cursor = driver.cursor()
    cursor.execute(f"copy {table} ({', '.join(columns)}) from stdin (format binary)", stream=io.BytesIO(binary(rows)))
    cursor.close()


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure(owner: Connection, count: int) -> None:
    from shared import database, messaging
    from shared.database import operator_session, tenant_session
    from shared.documents.intake import Reception, receive
    from shared.documents.storing import Batch, Content, store
    from shared.documents.vectors import store_vectors, text_hash
    from shared.events import DocumentSubmitted, new_traceparent
    from shared.fakes import FakeBus
    from shared.retrieval.spaces import activate_first, ensure_space
    from shared.tenants.directory import create_tenant

    messaging.use_bus(FakeBus())
    with operator_session() as session:
        tenant = create_tenant(session, f"bench-{uuid4().hex[:8]}", "Bench", "admin@bench.example")
        space = ensure_space(session, "bench", DIMENSION)
        activate_first(session, tenant.tenant_id, space)
    draw = random.Random(1337)
    chunks = [
        NewChunk(body, text_hash((), body), 0, len(body), 800, "de", ("Gesetz", f"§ {n}"), {"page_starts": []})
        for n, body in enumerate(texts(count))
    ]
    vectors = [[draw.gauss(0, 1) for _ in range(DIMENSION)] for _ in chunks]

    def received(name: str) -> list[tuple[Reception, list[NewChunk]]]:
        receptions = []
        for begun in range(0, count, DOCUMENT):
            event = DocumentSubmitted(
                tenant_id=tenant.tenant_id, external_id=f"{name}{begun}", source_version=1, content="eA==",
                occurred_at=datetime.now(UTC),
            )  # fmt: skip
            with tenant_session(tenant.tenant_id) as session:
                receptions.append((receive(session, event, "upstream"), chunks[begun : begun + DOCUMENT]))
        return receptions

    def write_chunks(receptions: list[tuple[Reception, list[NewChunk]]]) -> None:
        for reception, own in receptions:
            content = Content("0" * 64, "file:///x", 1, "text/plain", "de", "Gesetz", own)
            with tenant_session(tenant.tenant_id) as session:
                store(session, reception, content, new_traceparent(), Batch(BATCH, 100_000))

    wordless, worded = received("a"), received("b")
    owner.execute(text("alter table rag.chunks disable trigger index_terms"))
    owner.commit()
    ours = seconds(lambda: write_chunks(wordless))
    owner.execute(text("alter table rag.chunks enable trigger index_terms"))
    owner.commit()
    ours_with_words = seconds(lambda: write_chunks(worded))
    stored = owner.execute(
        text(
            f"select {', '.join(CHUNK_COLUMNS)} from rag.chunks where tenant_id = :t "
            "and version_id = any(cast(:v as uuid[])) order by version_id, ordinal"
        ),
        {"t": tenant.tenant_id, "v": "{" + ",".join(str(one.version_id) for one, _ in worded) + "}"},
    ).all()
    rows = [list(row) for row in stored]
    ids = [row.chunk_id for row in stored]

    def write_vectors() -> None:
        for begun in range(0, count, BATCH):
            with tenant_session(tenant.tenant_id) as session:
                part = slice(begun, begun + BATCH)
                store_vectors(session, tenant.tenant_id, space.space_id, ids[part], vectors[part])

    vectors_ours = seconds(write_vectors)
    words = [
        (
            table,
            names,
            [
                [array("i", value) if isinstance(value, list) else value for value in row]
                for row in owner.execute(text(statement), {"t": tenant.tenant_id})
            ],
        )
        for table, names, statement in WORDS
    ]
    owner.rollback()
    peer = Peer(owner)
    chunks_of = [("chunks", CHUNK_COLUMNS, rows)]
    theirs = seconds(lambda: peer.write(chunks_of, DOCUMENT))
    embedded = [[tenant.tenant_id, space.space_id, id_, vector] for id_, vector in zip(ids, vectors, strict=True)]
    columns = ("tenant_id", "space_id", "chunk_id", "embedding")
    vectors_theirs = seconds(lambda: peer.write([("embeddings", columns, embedded)], BATCH))
    with_tsvector = seconds(lambda: peer.write([("worded", CHUNK_COLUMNS, rows)], DOCUMENT))
    peer.empty("chunks")
    theirs_with_words = seconds(lambda: peer.write([*chunks_of, *words], DOCUMENT))
    report("chunks, rows only", count, ours, theirs)
    report("vectors", count, vectors_ours, vectors_theirs)
    report("rows together", 2 * count, ours + vectors_ours, theirs + vectors_theirs)
    report("chunks with words", count, ours_with_words, theirs_with_words)
    report("stored and embedded", 2 * count, ours_with_words + vectors_ours, theirs_with_words + vectors_theirs)
    report("chunks, tsvector", count, ours_with_words, with_tsvector)
    database.forget_engines()


TERM_COLUMNS = ("tenant_id", "chunk_id", "document_id", "version_id", "language", "length", "terms", "markers")
WORD_COLUMNS = ("tenant_id", "language", "stem", "spellings")
WORDS = (
    (
        "chunk_terms",
        TERM_COLUMNS,
        # In the order of the chunks that they belong to.
        f"select {', '.join('t.' + name for name in TERM_COLUMNS)} from rag.chunk_terms t join rag.chunks c "
        "on c.tenant_id = t.tenant_id and c.chunk_id = t.chunk_id where t.tenant_id = :t "
        "order by c.version_id, c.ordinal",
    ),
    (
        "vocabulary",
        WORD_COLUMNS,
        f"select {', '.join(WORD_COLUMNS)} from rag.vocabulary where tenant_id = :t order by ctid",
    ),
)
"""The rows that the trigger writes for lexical search."""


class Peer:
    """Tables of the same columns and indexes in a schema of their own."""

    def __init__(self, owner: Connection) -> None:
        self._owner = owner
        driver = owner.connection.driver_connection
        assert driver is not None
        driver._usock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as shared.driver does for ours
        owner.execute(text("create schema bench"))
        for table in ("chunks", "embeddings", "chunk_terms", "vocabulary"):
            owner.execute(text(f"create table bench.{table} (like rag.{table} including all)"))
        owner.execute(text("create table bench.worded (like rag.chunks including all)"))
        words = "to_tsvector('german', array_to_text(heading_path) || ' ' || text)"
        owner.execute(
            text(
                "create function bench.array_to_text(parts text[]) returns text language sql immutable "
                "as $$ select array_to_string(parts, ' ') $$"
            )
        )
        words = words.replace("array_to_text", "bench.array_to_text")
        owner.execute(text(f"alter table bench.worded add words tsvector generated always as ({words}) stored"))
        owner.execute(text("create index on bench.worded using gin (words) with (fastupdate = off)"))
        owner.commit()

    def write(self, tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[Any]]]], size: int) -> None:
        """Rows of one or more tables, `size` of the first in a transaction and as large a share of the others."""
        whole = len(tables[0][2])
        for begun in range(0, whole, size):
            for table, columns, rows in tables:
                first, last = (len(rows) * place // whole for place in (begun, min(begun + size, whole)))
                copy_binary(self._owner, f"bench.{table}", columns, rows[first:last])
            self._owner.commit()

    def empty(self, table: str) -> None:
        """Take all rows out again."""
        self._owner.execute(text(f"truncate bench.{table}"))
        self._owner.commit()


def report(name: str, rows: int, ours: float, theirs: float) -> None:
    rates = f"ours {rows / ours:8.0f} rows/s   COPY BINARY {rows / theirs:8.0f} rows/s"
    print(f"{name:<19} {rates}   ratio {theirs / ours:5.2f}")


def main() -> None:
    """Print both rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=4_000)
    count = parser.parse_args().chunks
    with database():
        engine = create_engine(os.environ["MIGRATION_DATABASE_URL"], poolclass=NullPool)
        with engine.connect() as owner:
            measure(owner, count)
        engine.dispose()


if __name__ == "__main__":
    main()
