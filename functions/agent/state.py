"""What the graph remembers between its steps: plain JSON, because it is stored and read by later releases.

The keys and the names of the nodes are wire formats: a renamed one makes a waiting run end as finished (FACTS). A key
that an earlier release did not write is read with `.get`.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from shared.retrieval.passages import Passage


class PartState(TypedDict):
    """A chunk inside a passage with context: `text[start:end]` of the passage is the chunk's text."""

    chunk_id: str
    start: int
    end: int
    heading_path: list[str]
    page_starts: list[list[int]]


class PassageState(TypedDict):
    """A retrieved passage; `number` is what the answer cites it by, from 1."""

    number: int
    chunk_id: str
    """Empty for the result of a tool that is no document."""
    version_id: str
    document_id: str
    title: str
    text: str
    heading_path: list[str]
    page_starts: list[list[int]]
    """[page, offset in the text where it begins], in order; empty when the document has no pages."""
    similarity: float
    parts: NotRequired[list[PartState]]
    """The chunks of a passage with its context; absent: one chunk."""
    tool: NotRequired[str]
    """The tool that found it."""


def passage_state(number: int, passage: Passage) -> PassageState:
    """A passage as the state keeps it."""
    state: PassageState = {
        "number": number,
        "chunk_id": str(passage.chunk_id),
        "version_id": str(passage.version_id),
        "document_id": str(passage.document_id),
        "title": passage.title,
        "text": passage.text,
        "heading_path": list(passage.heading_path),
        "page_starts": passage.position.get("page_starts") or [],
        "similarity": round(passage.similarity, 4),
    }
    if len(passage.parts) > 1:
        state["parts"] = [
            PartState(
                chunk_id=str(part.chunk_id),
                start=part.start,
                end=part.end,
                heading_path=list(part.heading_path),
                page_starts=part.position.get("page_starts") or [],
            )
            for part in passage.parts
        ]
    return state


class CitationState(TypedDict):
    """A verified quotation; offsets are characters in the passage's text."""

    number: int
    passage: int
    quote: str
    start: int
    end: int


class CallState(TypedDict):
    """A tool call the model wants; `verdict` is run, ask or refuse, `text` why not."""

    key: str
    call_id: str
    name: str
    arguments: dict[str, Any]
    malformed: str
    verdict: str
    text: str


class RunState(TypedDict, total=False):
    """The state of a run, filled step by step.

    `decision` is where `reason`, `verify` and the like send the run next. `rounds` counts decisions of the model,
    `tries` searches, `drafts` answers written. `fallback`: nothing in the documents answers the question.
    """

    question: str
    standalone: str
    turns: int
    """Earlier turns of the conversation that were read."""
    query: str
    tries: int
    enough: bool
    strength: float
    space_id: str
    passages: list[PassageState]
    rounds: int
    steps: int
    dialogue: list[dict[str, Any]]
    calls: list[CallState]
    decision: str
    partial: bool
    draft: str
    drafts: int
    cut: bool
    """The model stopped at its length limit."""
    usage: dict[str, Any]
    answer: str
    no_evidence: bool
    fallback: bool
    citations: list[CitationState]
    findings: list[str]
    """What verification found: invented, altered-number, mixed-sources, wrong-number, unsupported, unmarked; then what
    the answer must not carry out: prompt-withheld, address-removed."""
