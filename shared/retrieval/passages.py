"""What a search hands over: passages, each a chunk or a chunk with what stands around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Part:
    """A chunk inside a passage: the passage's `text[start:end]` is the chunk's text, character for character."""

    chunk_id: UUID
    start: int
    end: int
    heading_path: tuple[str, ...]
    position: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk that was found, perhaps with its neighbours (`shared.retrieval.context`).

    `similarity` is the cosine to the question in the space, -1 to 1; `bm25` its lexical score, 0 and more; `score`
    what it was ranked by. `relevance` is the chance that a sentence of it answers, 0 to 1, where the bundled
    re-ranker judged it. `parts` are the chunks the text consists of, in order; none means: `chunk_id` alone.
    """

    chunk_id: UUID
    version_id: UUID
    document_id: UUID
    title: str
    text: str
    heading_path: tuple[str, ...]
    position: dict[str, Any]
    similarity: float
    score: float
    bm25: float = 0.0
    language: str = "simple"
    external_id: str = ""
    parts: tuple[Part, ...] = ()
    relevance: float | None = None


def part_at(passage: Passage, start: int, end: int) -> Part:
    """The chunk that a quotation `passage.text[start:end]` is cited from.

    The one that contains it whole, the chunk that was found before all others; else the one that has most of it.
    """
    parts = passage.parts or (whole(passage),)
    found = sorted(parts, key=lambda part: part.chunk_id != passage.chunk_id)
    return max(found, key=lambda part: min(end, part.end) - max(start, part.start))


def whole(passage: Passage) -> Part:
    """The passage as its own only part."""
    return Part(passage.chunk_id, 0, len(passage.text), passage.heading_path, passage.position)
