"""The tools that read documents: search, list, open, compare. Never more than the member of the run may see."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from functions.agent.state import PassageState, passage_state
from functions.agent.tooling.working import Found, Work
from shared.documents.reading import MAY_SEE, MAY_SEE_TEXT, read_document
from shared.errors import PermanentError
from shared.retrieval.questions import Filters
from shared.retrieval.search import search as search_passages
from shared.retrieval.spaces import active_space
from shared.tools.arguments import CompareArguments, ListArguments, OpenArguments, SearchArguments

PARTS = 6
"""Parts of a document that are read at once; each is a chunk of at most 1,200 tokens."""
COMPARED_LINES = 3_000
"""Changed lines of each version that are compared; difflib's time grows with their product."""
SHOWN_LINES = 120


def search(arguments: SearchArguments, work: Work) -> Found:
    """Passages for a question; raises like the embedding model when that cannot be reached."""
    tenant_id = work.principal.tenant_id
    with work.session() as session:
        space = active_space(session, tenant_id)
    vector = work.embed(arguments.query, space)
    chosen = Filters(collections=(arguments.collection,) if arguments.collection else ())
    with work.session() as session:
        found = search_passages(
            session,
            tenant_id,
            work.principal.member_id,
            space,
            arguments.query,
            vector,
            top_k=arguments.results,
            filters=chosen,
        )
    passages = [passage_state(number, passage) for number, passage in enumerate(found, start=1)]
    return Found("\n\n".join(map(_told, passages)) or "Nothing was found.", passages)


def _told(passage: PassageState) -> str:
    title = " › ".join([passage["title"], *passage["heading_path"]])
    return f"Document {passage['document_id']}: {title}\n{passage['text']}"


def list_documents(arguments: ListArguments, work: Work) -> Found:
    """Searchable documents whose title or file name contains the words, last changed first."""
    principal = work.principal
    with work.session() as session:
        rows = session.execute(
            text(
                "select d.document_id, d.title, d.external_id, c.name as collection, v.source_version, d.updated_at "
                "from rag.documents d join rag.collections c on c.tenant_id = d.tenant_id "
                "and c.collection_id = d.collection_id join rag.versions v on v.tenant_id = d.tenant_id "
                "and v.version_id = d.current_version_id where d.tenant_id = :tenant and d.state = 'searchable' "
                "and (:collection = '' or c.name = :collection) and (:words = '' "
                "or strpos(lower(d.title), lower(:words)) > 0 or strpos(lower(d.external_id), lower(:words)) > 0) "
                f"and {MAY_SEE} order by d.updated_at desc, d.document_id limit :limit"
            ),
            {
                "tenant": principal.tenant_id,
                "member": principal.member_id,
                "collection": arguments.collection,
                "words": arguments.title_contains.strip(),
                "limit": arguments.limit,
            },
        ).all()
    lines = [
        f"{row.document_id}: {row.title} (version {row.source_version}, collection {row.collection}, "
        f"changed {row.updated_at:%Y-%m-%d})"
        for row in rows
    ]
    return Found("\n".join(lines) or "There is no such document.")


def open_document(arguments: OpenArguments, work: Work) -> Found:
    """Some parts of a document's current version, in order, as passages. Raises PermanentError `unknown-document`."""
    with work.session() as session:
        title, current = _visible(session, work, arguments.document_id)
        version = _version(session, work, arguments.document_id, current)
        chunks = session.execute(
            text(
                "select chunk_id, ordinal, text, heading_path, position from rag.chunks where tenant_id = :tenant "
                "and version_id = :version and ordinal >= :first order by ordinal limit :limit"
            ),
            {
                "tenant": work.principal.tenant_id,
                "version": version.version_id,
                "first": arguments.first_part,
                "limit": PARTS,
            },
        ).all()
    if not chunks:
        return Found(f"{title} has {version.chunks} parts; there is none from {arguments.first_part} on.")
    passages: list[PassageState] = [
        {
            "number": number,
            "chunk_id": str(chunk.chunk_id),
            "version_id": str(version.version_id),
            "document_id": str(arguments.document_id),
            "title": title,
            "text": chunk.text,
            "heading_path": list(chunk.heading_path),
            "page_starts": chunk.position.get("page_starts") or [],
            "similarity": 1.0,
        }
        for number, chunk in enumerate(chunks, start=1)
    ]
    last = chunks[-1].ordinal
    head = f"{title}, version {version.source_version}: parts {chunks[0].ordinal} to {last} of {version.chunks}."
    rest = f"\n\nMore follows: first_part={last + 1}." if last + 1 < version.chunks else ""
    return Found(head + "\n\n" + "\n\n".join(chunk.text for chunk in chunks) + rest, passages)


def compare_versions(arguments: CompareArguments, work: Work) -> Found:
    """The lines that two versions of a document do not share, as a unified diff.

    Raises PermanentError `unknown-document`, `unknown-version`, `too-different`.
    """
    with work.session() as session:
        title, current = _visible(session, work, arguments.document_id)
        newer = _version(session, work, arguments.document_id, current, number=arguments.newer)
        older = _version(session, work, arguments.document_id, None, number=arguments.older, before=newer)
        old, new = (_lines(session, work, version.version_id) for version in (older, newer))
    work.deadline.left()
    head, tail = _common_ends(old, new)
    changed = max(len(old), len(new)) - head - tail
    if changed > COMPARED_LINES:
        raise PermanentError(
            "too-different", f"The versions differ in more than {COMPARED_LINES} lines.", "Open the document instead."
        )
    told = f"{title}: version {older.source_version} and version {newer.source_version}"
    diff = list(difflib.unified_diff(old[head : len(old) - tail], new[head : len(new) - tail], n=0, lineterm=""))[2:]
    lines = [line for line in diff if not line.startswith("@@")]
    if not lines:
        return Found(f"{told} say the same.")
    counts = f"{sum(line[0] == '-' for line in lines)} lines went, {sum(line[0] == '+' for line in lines)} came"
    cut = f"\n({len(lines) - SHOWN_LINES} more lines)" if len(lines) > SHOWN_LINES else ""
    return Found(f"{told}: {counts}.\n" + "\n".join(lines[:SHOWN_LINES]) + cut)


def _common_ends(old: Sequence[str], new: Sequence[str]) -> tuple[int, int]:
    """How many lines both begin and end with: a small change of a long document is compared in no time."""
    shorter = min(len(old), len(new))
    head = next((n for n in range(shorter) if old[n] != new[n]), shorter)
    tail = next((n for n in range(shorter - head) if old[-1 - n] != new[-1 - n]), shorter - head)
    return head, tail


def _visible(session: Session, work: Work, document_id: UUID) -> tuple[str, UUID]:
    """Title and current version of a document that answers and that the member may see."""
    row = read_document(session, work.principal, document_id)
    current = None
    if row is not None and row.state == "searchable":
        current = session.execute(
            text("select current_version_id from rag.documents where tenant_id = :tenant and document_id = :document"),
            {"tenant": work.principal.tenant_id, "document": document_id},
        ).scalar()
    if row is None or current is None:
        raise PermanentError("unknown-document", "There is no such document.", "Use search or list_documents.")
    return row.title, current


def _version(
    session: Session,
    work: Work,
    document_id: UUID,
    current: UUID | None,
    *,
    number: int | None = None,
    before: Row[Any] | None = None,
) -> Row[Any]:
    """A version that has answered: by its number, else the current one, else the last before another."""
    row = session.execute(
        text(
            "select v.version_id, v.source_version, v.chunks from rag.versions v join rag.documents d "
            "on d.tenant_id = v.tenant_id and d.document_id = v.document_id where v.tenant_id = :tenant "
            "and v.document_id = :document and v.state in ('searchable', 'superseded') and case "
            "when cast(:number as bigint) is not null then v.source_version = :number "
            "when cast(:current as uuid) is not null then v.version_id = :current "
            f"else v.source_version < :before end and {MAY_SEE_TEXT} order by v.source_version desc limit 1"
        ),
        {
            "tenant": work.principal.tenant_id,
            "member": work.principal.member_id,
            "document": document_id,
            "number": number,
            "current": current,
            "before": before.source_version if before else 0,
        },
    ).first()
    if row is None:
        raise PermanentError("unknown-version", "There is no such version of the document.", "Give another number.")
    return row


def _lines(session: Session, work: Work, version_id: UUID) -> list[str]:
    """The lines of a version, put together from its chunks; what chunks have in common is there once.

    Raises PermanentError `unknown-version` when its chunks are no longer kept.
    """
    rows = session.execute(
        text(
            "select text, start_offset, end_offset from rag.chunks where tenant_id = :tenant and version_id = :version "
            "order by ordinal"
        ),
        {"tenant": work.principal.tenant_id, "version": version_id},
    )
    whole, reached = [], 0
    for row in rows:
        overlap = max(0, reached - row.start_offset)
        whole.append(row.text[overlap:] if overlap else "\n" + row.text)
        reached = max(reached, row.end_offset)
    if not whole:
        raise PermanentError("unknown-version", "The text of that version is no longer kept.", "Give another number.")
    return [line.strip() for line in "".join(whole).splitlines() if line.strip()]
