"""What stands around a hit: neighbouring chunks and the section it belongs to, merged, within a budget of tokens.

Chunks are slices of a document's text; neighbours overlap inside long sections and are parted by white space elsewhere.
Merged by their offsets they give the text as it stands in the document, and every character keeps the chunk that it is
cited from (`Passage.parts`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from shared.database import array_literal, often
from shared.retrieval.passages import Part, Passage

REACH = 8
"""Chunks to either side that are looked at: with 800 tokens a chunk more than any budget holds."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    chunk_id: UUID
    version_id: UUID
    ordinal: int
    text: str
    start: int
    end: int
    tokens: int
    heading_path: tuple[str, ...]
    position: dict[str, Any]


def with_context(session: Session, tenant_id: UUID, passages: Sequence[Passage], budget_tokens: int) -> list[Passage]:
    """The passages, best first, widened by what stands around them in the same version.

    The hits themselves come first: the best one always, the others as far as `budget_tokens` (by the chunker's
    estimate) reach. What is left goes to the neighbours, nearest first and the better hit's before the others': the
    rest of the section under the same headings, then one chunk beyond it to either side. Hits that grow together become
    one passage, with the rank and the figures of the better one. `text` is then the document's own from the first to
    the last chunk of the passage and `parts` says which chunk each of its slices is, for `part_at`. A passage whose
    document was deleted meanwhile is dropped.
    """
    around = _around(session, tenant_id, passages)
    kept, room = _hits(passages, around, budget_tokens)
    taken = {(p.version_id, around[p.version_id, p.chunk_id].ordinal) for p in kept}
    by_place = {(c.version_id, c.ordinal): c for c in around.values()}
    for chunk in _wanted(kept, around, by_place):
        place = (chunk.version_id, chunk.ordinal)
        if place not in taken and chunk.tokens <= room:
            taken.add(place)
            room -= chunk.tokens
    found: list[Passage] = []
    for passage in kept:
        run = _run(around[passage.version_id, passage.chunk_id], taken, by_place)
        if not any(part.chunk_id == passage.chunk_id for other in found for part in other.parts):
            found.append(_merged(passage, run))
    return found


def _around(session: Session, tenant_id: UUID, passages: Sequence[Passage]) -> dict[tuple[UUID, UUID], _Chunk]:
    """The hits and up to REACH chunks to either side, by version and chunk."""
    if not passages:
        return {}
    rows = session.execute(
        often(
            "with hit as (select c.version_id, c.ordinal from rag.chunks c join rag.documents d "
            "on d.tenant_id = :tenant and d.document_id = c.document_id and d.state = 'searchable' "
            "where c.tenant_id = :tenant and c.chunk_id = any(cast(:ids as uuid[]))) "
            "select distinct on (n.version_id, n.ordinal) n.chunk_id, n.version_id, n.ordinal, n.text, "
            "n.start_offset, n.end_offset, n.tokens, n.heading_path, n.position "
            "from hit join rag.chunks n on n.tenant_id = :tenant and n.version_id = hit.version_id "
            "and n.ordinal between hit.ordinal - :reach and hit.ordinal + :reach"
        ),
        {"tenant": tenant_id, "ids": array_literal(p.chunk_id for p in passages), "reach": REACH},
    )
    chunks = (
        _Chunk(
            row.chunk_id, row.version_id, row.ordinal, row.text, row.start_offset, row.end_offset, row.tokens,
            tuple(row.heading_path), row.position,
        )
        for row in rows
    )  # fmt: skip
    return {(chunk.version_id, chunk.chunk_id): chunk for chunk in chunks}


def _hits(
    passages: Sequence[Passage], around: dict[tuple[UUID, UUID], _Chunk], budget: int
) -> tuple[list[Passage], int]:
    """The passages that fit, the first one in any case, and the tokens that are left."""
    kept: list[Passage] = []
    for passage in passages:
        chunk = around.get((passage.version_id, passage.chunk_id))
        if chunk is not None and (not kept or chunk.tokens <= budget):
            kept.append(passage)
            budget -= chunk.tokens
    return kept, budget


def _wanted(
    kept: Sequence[Passage],
    around: dict[tuple[UUID, UUID], _Chunk],
    by_place: dict[tuple[UUID, int], _Chunk],
) -> Iterator[_Chunk]:
    """Neighbours in the order in which they are wanted: first those of the section, then one beyond it."""
    hits = [around[p.version_id, p.chunk_id] for p in kept]
    ends = {}
    for hit in hits:
        reach = {}
        for step in (1, -1):
            last = hit.ordinal
            while abs(last + step - hit.ordinal) <= REACH and _same_section(
                by_place.get((hit.version_id, last + step)), hit
            ):
                last += step
            reach[step] = last
        ends[hit.chunk_id] = reach
    for distance in range(1, REACH + 1):
        for hit in hits:
            for step in (1, -1):
                ordinal = hit.ordinal + step * distance
                if distance <= abs(ends[hit.chunk_id][step] - hit.ordinal):
                    yield by_place[hit.version_id, ordinal]
    for hit in hits:
        for step in (1, -1):
            beyond = by_place.get((hit.version_id, ends[hit.chunk_id][step] + step))
            if beyond is not None:
                yield beyond


def _same_section(chunk: _Chunk | None, hit: _Chunk) -> bool:
    return chunk is not None and chunk.heading_path == hit.heading_path


def _run(hit: _Chunk, taken: set[tuple[UUID, int]], by_place: dict[tuple[UUID, int], _Chunk]) -> list[_Chunk]:
    """The taken chunks around a hit without a gap, in order."""
    first = last = hit.ordinal
    while (hit.version_id, first - 1) in taken:
        first -= 1
    while (hit.version_id, last + 1) in taken:
        last += 1
    return [by_place[hit.version_id, ordinal] for ordinal in range(first, last + 1)]


def _merged(passage: Passage, run: Sequence[_Chunk]) -> Passage:
    """One text of the chunks by their offsets; white space that no chunk has is made of line breaks."""
    origin, text = run[0].start, ""
    parts = []
    for chunk in run:
        begin = chunk.start - origin
        text += "\n" * (begin - len(text))
        text += chunk.text[len(text) - begin :]
        parts.append(Part(chunk.chunk_id, begin, begin + len(chunk.text), chunk.heading_path, chunk.position))
    return replace(passage, text=text, parts=tuple(parts), position=_position(passage, parts))


def _position(passage: Passage, parts: Sequence[Part]) -> dict[str, Any]:
    """The place of the hit; `page_starts` (page, offset in the text) go through the whole passage."""
    starts: list[list[int]] = []
    for part in parts:
        for page, offset in part.position.get("page_starts") or ():
            if not starts or starts[-1][0] < page:
                starts.append([page, part.start + offset])
    return passage.position | ({"page_starts": starts} if starts else {})
