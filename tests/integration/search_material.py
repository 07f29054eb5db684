"""Documents made searchable the way ingest and embed do it, and the questions asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import text

from functions.ingest.chunking import chunk_document
from functions.ingest.parsing.markdown import parse_markdown
from shared.database import tenant_session
from shared.documents.completion import finish_version
from shared.documents.intake import receive
from shared.documents.storing import Batch, Content, NewChunk, store
from shared.documents.vectors import chunks_without_vector, store_vectors, text_hash
from shared.events import Access, DocumentSubmitted
from shared.fakes import hashed_vector
from shared.retrieval.questions import Filters
from shared.retrieval.ranking import Tuning
from shared.retrieval.search import Search, search_explained
from shared.retrieval.spaces import active_space
from shared.tenants.directory import Principal

EVERYONE = Access()


def chunks_of(texts: Sequence[str], language: str, headings: tuple[str, ...] = ()) -> list[NewChunk]:
    """A chunk a text, side by side."""
    return [NewChunk(t, text_hash(headings, t), 0, len(t), len(t.split()), language, headings, {}) for t in texts]


def cut(markdown: str, size: int) -> tuple[str, list[NewChunk]]:
    """The parsed text of a Markdown document and its chunks of about `size` tokens, by the product's own chunker."""
    parsed = parse_markdown(markdown)
    chunks = chunk_document(parsed, size=size, maximum=size * 2, overlap=size // 8)
    return parsed.text, [
        NewChunk(
            c.text, text_hash(c.heading_path, c.text), c.start, c.end, c.tokens, c.language, c.heading_path, c.position
        )
        for c in chunks
    ]


def now(tenant: Principal) -> datetime:
    """The database's clock."""
    with tenant_session(tenant.tenant_id) as session:
        moment: datetime = session.execute(text("select clock_timestamp()")).scalar_one()
        return moment


def index(
    tenant: Principal,
    external_id: str,
    *texts: str,
    language: str = "de",
    version: int = 1,
    access: Access = EVERYONE,
    collection: str = "default",
    metadata: dict[str, str] | None = None,
    headings: tuple[str, ...] = (),
    chunks: Sequence[NewChunk] | None = None,
) -> UUID:
    """Make a searchable document of these chunks, the way ingest and embed do; returns its id."""
    event = DocumentSubmitted(
        tenant_id=tenant.tenant_id,
        external_id=external_id,
        source_version=version,
        content="",
        access=access,
        collection=collection,
        metadata=metadata or {},
    )
    stored = chunks_of(texts, language, headings) if chunks is None else chunks
    with tenant_session(tenant.tenant_id) as session:
        reception = receive(session, event, "upstream")
        content = Content(uuid4().hex, "", 1, "text/plain", language, "", stored)
        store(session, reception, content, event.traceparent, Batch(99, 9999))
        space = active_space(session, tenant.tenant_id)
        ids = session.scalars(
            text("select chunk_id from rag.chunks where version_id = :v"), {"v": reception.version_id}
        ).all()
        missing = chunks_without_vector(session, tenant.tenant_id, reception.version_id, space.space_id, ids).chunks
        vectors = [hashed_vector(t, space.dimension) for _, t in missing]
        store_vectors(session, tenant.tenant_id, space.space_id, [chunk_id for chunk_id, _ in missing], vectors)
        finish_version(session, tenant.tenant_id, reception.version_id)
    return reception.document_id


def explained(who: Principal, question: str, filters: Filters | None = None, *, lexical_only: bool = False) -> Search:
    """Search as a member; `lexical_only` takes the vectors out by asking for the opposite direction."""
    with tenant_session(who.tenant_id) as session:
        space = active_space(session, who.tenant_id)
        vector = hashed_vector("nothing in particular" if lexical_only else question, space.dimension)
        tuning = Tuning(lexical_weight=1.0) if lexical_only else Tuning()
        return search_explained(
            session, who.tenant_id, who.member_id, space, question, vector, top_k=10, filters=filters, tuning=tuning
        )


def titles(who: Principal, question: str, filters: Filters | None = None, *, lexical_only: bool = False) -> list[str]:
    """External ids of what is found, best first; only lexical hits when asked for."""
    found = explained(who, question, filters, lexical_only=lexical_only).passages
    return [p.external_id for p in found if p.bm25 > 0 or not lexical_only]
