"""How long exporting and erasing a tenant takes beside another one of the same size, and in how much memory.

    .venv/bin/python -m benchmarks.tenant_leaves [--chunks 20000] [--dimension 512] [--blob-bytes 20000]

Twenty chunks a document, a vector and lexical terms for each, a blob a document, in PostgreSQL and a folder.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from sqlalchemy import text

from benchmarks.retrieval_corpus import database
from shared.database import operator_session
from shared.retrieval.spaces import activate_first, ensure_space
from shared.storage import FolderStorage
from shared.tenants import catalogue
from shared.tenants.directory import create_tenant
from shared.tenants.erasure import close_tenant, erase_tenant
from shared.tenants.export import export_tenant, verify_export

PER_DOCUMENT = 20

SEED = (
    "insert into rag.documents (tenant_id, document_id, collection_id, source, external_id, title, state) "
    "select :t, gen_random_uuid(), c.collection_id, 'upstream', n::text, 'Document ' || n, 'searchable' "
    "from rag.collections c, generate_series(1, :documents) n where c.tenant_id = :t",
    "insert into rag.versions (tenant_id, version_id, document_id, source_version, state, content_hash, blob_uri, "
    "bytes, file_name, media_type, traceparent) select :t, gen_random_uuid(), document_id, 1, 'searchable', 'x', '', "
    "1, 'a.md', 'text/markdown', '' from rag.documents where tenant_id = :t",
    "insert into rag.chunks (tenant_id, chunk_id, version_id, document_id, ordinal, text, text_hash, start_offset, "
    "end_offset, tokens, language, heading_path, position) select :t, gen_random_uuid(), version_id, document_id, n, "
    "(select string_agg('word' || (random() * 5000)::int, ' ') from generate_series(1, 200) where n > 0), 'x', 0, 1, "
    "200, 'en', '{}', '{}' from rag.versions, generate_series(1, :per_document) n "
    "where tenant_id = :t and version_id = :v",
    "insert into rag.embeddings (tenant_id, space_id, chunk_id, embedding) select :t, s.space_id, c.chunk_id, "
    "cast((select array_agg(random()) from generate_series(1, :dimension) where c.ordinal > 0) as vector) "
    "from rag.chunks c, rag.tenant_spaces s where c.tenant_id = :t and c.version_id = :v and s.tenant_id = :t",
)


def seed(slug: str, storage: FolderStorage, chunks: int, dimension: int, blob_bytes: int) -> UUID:
    """A tenant with so many chunks."""
    with operator_session() as session:
        tenant_id = create_tenant(session, slug, slug, f"admin@{slug}.example").tenant_id
        activate_first(session, tenant_id, ensure_space(session, "bench", dimension))
        values = {
            "t": tenant_id,
            "documents": chunks // PER_DOCUMENT,
            "per_document": PER_DOCUMENT,
            "dimension": dimension,
        }
        for statement in SEED[:2]:
            session.execute(text(statement), values)
        versions = session.scalars(text("select version_id from rag.versions where tenant_id = :t"), values).all()
        made = random.Random(slug)
        for version_id in versions:
            for statement in SEED[2:]:
                session.execute(text(statement), values | {"v": version_id})
            uri = storage.put(tenant_id, made.randbytes(blob_bytes))
            session.execute(
                text("update rag.versions set blob_uri = :uri where tenant_id = :t and version_id = :v"),
                {"uri": uri, "t": tenant_id, "v": version_id},
            )
    return tenant_id


def timed(name: str, work: Callable[[], object]) -> None:
    """Run and print how long it took, and the most memory this process has had so far."""
    began = time.monotonic()
    told = work()
    took = time.monotonic() - began
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:26} {took:7.2f} s   resident at most {resident:5.0f} MB   {told or ''}", flush=True)


def measure(folder: Path, chunks: int, dimension: int, blob_bytes: int) -> None:
    """Everything in turn."""
    storage = FolderStorage((folder / "blobs").as_uri())
    timed("seed the other tenant", lambda: seed("other", storage, chunks, dimension, blob_bytes))
    tenant_id = seed("leaving", storage, chunks, dimension, blob_bytes)
    timed("(seeded)", lambda: None)

    def export(vectors: bool) -> str:
        target = folder / f"export-{vectors}.zip"
        list(export_tenant(tenant_id, storage, target, actor="benchmark", vectors=vectors))
        return f"{target.stat().st_size / 1e6:.0f} MB"

    def search() -> str:
        with operator_session() as session:
            found = catalogue.search(session, tenant_id)
        return f"{found.searched} columns, {sum(found.own.values())} found"

    def erase() -> str:
        with operator_session() as session:
            close_tenant(session, tenant_id, "leaving", "benchmark")
        rows = sum(1 for _ in erase_tenant(tenant_id, storage, secret="b" * 32, stage="dev"))
        return f"{rows} transactions"

    timed("export", lambda: export(vectors=True))
    timed("export without vectors", lambda: export(vectors=False))
    timed("verify the export", lambda: verify_export(folder / "export-True.zip")[1][:12])
    timed("search every column", search)
    timed("erase with proof", erase)


def main() -> None:
    """Read the arguments, start a database, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=20_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--blob-bytes", type=int, default=20_000)
    arguments = parser.parse_args()
    with database(), tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.chunks, arguments.dimension, arguments.blob_bytes)


if __name__ == "__main__":
    main()
