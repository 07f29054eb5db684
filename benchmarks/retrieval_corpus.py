"""A temporary database with tenants and corpora in it, loaded past the functions (what is measured is the search)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID, uuid5

from sqlalchemy import text

from benchmarks.retrieval_vectors import Vectors
from local import postgres
from schema import migrate, roles
from shared.database import copy_rows, forget_engines, operator_session, tenant_session
from shared.retrieval.spaces import Space, activate_first, ensure_space
from shared.settings import get_settings
from shared.tenants.directory import Principal, create_tenant, memberships


@dataclass(frozen=True)
class Piece:
    """A chunk to be loaded, in a document by its external id; pieces of a document follow each other."""

    document: str
    language: str
    text: str
    title: str = ""
    headings: tuple[str, ...] = ()


@contextmanager
def database(package: str = postgres.EMBEDDED) -> Iterator[postgres.Server]:
    """A migrated database that is thrown away; the settings of this process point at it."""
    with postgres.temporary(package) as server:
        passwords = {role: os.urandom(12).hex() for role in (roles.OWNER, roles.APPLICATION, roles.OPERATOR)}
        roles.bootstrap(server.admin_dsn, passwords)
        urls = {
            role: f"postgresql+pg8000://{role}:{word}@{server.host}:{server.port}/noesis2"
            for role, word in passwords.items()
        }
        migrate.upgrade(urls[roles.OWNER])
        os.environ |= {
            "NOESIS_HOME": str(server.data.parent / "home"),
            "DATABASE_URL": urls[roles.APPLICATION],
            "OPERATOR_DATABASE_URL": urls[roles.OPERATOR],
            "MIGRATION_DATABASE_URL": urls[roles.OWNER],
            "LITELLM_MASTER_KEY": "unused",
        }
        get_settings.cache_clear()
        forget_engines()
        try:
            yield server
        finally:
            forget_engines()


def new_tenant(slug: str, model: str = "use-v3", dimension: int = 512) -> tuple[Principal, Space]:
    """A tenant with a vector space, as its administrator."""
    with operator_session() as operator:
        made = create_tenant(operator, slug, slug, f"admin@{slug}.example")
        space = ensure_space(operator, model, dimension)
        activate_first(operator, made.tenant_id, space)
    return memberships(f"admin@{slug}.example")[0], space


def load(
    principal: Principal, space: Space, pieces: Sequence[Piece], vectors: Vectors, *, state: str = "searchable"
) -> None:
    """Make the pieces documents of one version each, in `state`, with their vectors."""
    by_document: dict[str, list[int]] = {}
    for number, piece in enumerate(pieces):
        by_document.setdefault(piece.document, []).append(number)
    part: dict[str, list[int]] = {}
    for document, numbers in by_document.items():
        part[document] = numbers
        if sum(map(len, part.values())) >= AT_ONCE:
            _load(principal.tenant_id, space, pieces, vectors, part, state)
            part = {}
    _load(principal.tenant_id, space, pieces, vectors, part, state)


AT_ONCE = 500
"""Chunks in one transaction: on a busy machine more would pass the driver's timeout."""


def _load(
    tenant: UUID, space: Space, pieces: Sequence[Piece], vectors: Vectors, part: dict[str, list[int]], state: str
) -> None:
    documents, versions, chunks, embeddings = [], [], [], []
    for document, numbers in part.items():
        document_id, first = uuid5(tenant, document), pieces[numbers[0]]
        version_id = uuid5(document_id, "1")
        collection = uuid5(tenant, "collection:default")
        documents.append((tenant, document_id, collection, "upstream", document, first.title or document, state))
        versions.append((tenant, version_id, document_id, 1, "searchable", document, "", 0, "", "", len(numbers), ""))
        for ordinal, number in enumerate(numbers):
            chunk_id = uuid5(version_id, str(ordinal))
            chunks.append(_chunk(tenant, chunk_id, version_id, document_id, ordinal, pieces[number]))
            embeddings.append((tenant, space.space_id, chunk_id, list(vectors[number])))
    with tenant_session(tenant) as session:
        copy_rows(session, "rag.documents", _DOCUMENTS, documents)
        copy_rows(session, "rag.versions", _VERSIONS, versions)
        copy_rows(session, "rag.chunks", _CHUNKS, chunks)
        copy_rows(session, "rag.embeddings", ("tenant_id", "space_id", "chunk_id", "embedding"), embeddings)
        session.execute(
            text(
                "update rag.documents d set current_version_id = v.version_id from rag.versions v "
                "where d.tenant_id = :t and d.current_version_id is null and v.tenant_id = :t "
                "and v.document_id = d.document_id"
            ),
            {"t": tenant},
        )


_DOCUMENTS = ("tenant_id", "document_id", "collection_id", "source", "external_id", "title", "state")
_VERSIONS = (
    "tenant_id", "version_id", "document_id", "source_version", "state", "content_hash", "blob_uri", "bytes",
    "file_name", "media_type", "chunks", "traceparent",
)  # fmt: skip
_CHUNKS = (
    "tenant_id", "chunk_id", "version_id", "document_id", "ordinal", "text", "text_hash", "start_offset",
    "end_offset", "tokens", "language", "heading_path", "position",
)  # fmt: skip


def _chunk(
    tenant: UUID, chunk_id: UUID, version_id: UUID, document_id: UUID, ordinal: int, piece: Piece
) -> tuple[object, ...]:
    return (
        tenant, chunk_id, version_id, document_id, ordinal, piece.text, str(chunk_id), 0, len(piece.text),
        len(piece.text.split()), piece.language, list(piece.headings), {},
    )  # fmt: skip
