"""Passages as the graph carries them."""

from __future__ import annotations

from functions.agent.state import PassageState


def passage_state(number: int, text: str, title: str = "Ordnung", *headings: str) -> PassageState:
    """A passage that is one chunk, found with little doubt."""
    return {
        "number": number,
        "chunk_id": "c",
        "version_id": "v",
        "document_id": "d",
        "title": title,
        "text": text,
        "heading_path": list(headings),
        "page_starts": [],
        "similarity": 0.9,
    }
