"""What the graph remembers between its steps: plain JSON, because it is stored and read by later releases.

The keys and the names of the nodes are wire formats: a renamed one makes a waiting run end as finished (FACTS).
"""

from __future__ import annotations

from typing import Any, TypedDict


class PassageState(TypedDict):
    """A retrieved passage; `number` is what the answer cites it by, from 1."""

    number: int
    chunk_id: str
    version_id: str
    document_id: str
    title: str
    text: str
    heading_path: list[str]
    page_starts: list[list[int]]
    """[page, offset in the text where it begins], in order; empty when the document has no pages."""
    similarity: float


class CitationState(TypedDict):
    """A verified quotation; offsets are characters in the passage's text."""

    number: int
    passage: int
    quote: str
    start: int
    end: int


class RunState(TypedDict, total=False):
    """The state of a run, filled step by step: retrieve, generate, verify."""

    question: str
    passages: list[PassageState]
    draft: str
    usage: dict[str, Any]
    answer: str
    no_evidence: bool
    citations: list[CitationState]
