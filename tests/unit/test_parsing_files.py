"""Real files of many programs (../shared/data): each becomes a document or a reason, in bounded time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from functions.ingest.chunking import chunk_document
from functions.ingest.parsing.document import ParsedDocument
from tests.unit.test_parsing_hostile import SECONDS, outcome

# What these files must end in; all others of the folder must become text or end in a reason of ours.
EXPECTED = {
    "bug1782186.pdf": "encrypted",
    "bitmap-halftone-grid.pdf": "no-text",
    "testRTF.rtf": "unsupported-type",
    "testODTEncrypted.odt": "unsupported-type",
    "headerFooter.docx": "empty-document",
    "clusterfuzz-testcase-minimized-POIXWPFFuzzer-4791943399604224.docx": "corrupt",
}
READABLE = {"pdf": 60, "office": 48, "odd": 20}
"""How many of a folder's files became text in November 2026; fewer is a loss."""


@pytest.mark.parametrize("folder", ["pdf", "office", "odd"])
def test_every_real_file_becomes_a_document_or_a_reason(shared_folder: Path, folder: str) -> None:
    """No crash, no hang, no untyped error, offsets and limits hold; known files end as they should."""
    read = 0
    for path in sorted((shared_folder / "data" / "files" / folder).iterdir()):
        begun = time.monotonic()
        result = outcome(path.read_bytes(), path.name)
        assert time.monotonic() - begun < SECONDS
        assert result not in ("parse-crash", "parse-memory", "parse-timeout"), path.name
        assert EXPECTED.get(path.name, result) == result, path.name
        if isinstance(result, ParsedDocument):
            read += 1
            assert all(chunk.tokens <= 1200 for chunk in chunk_document(result)), path.name
    assert read >= READABLE[folder]


def test_laws_are_cut_into_chunks_of_the_right_size(shared_folder: Path) -> None:
    """300 German laws: nearly all chunks are German, under their headings, none over the maximum, most well filled."""
    sizes = []
    for path in sorted((shared_folder / "data" / "laws").glob("*.md"))[:60]:
        document = outcome(path.read_bytes(), path.name)
        assert isinstance(document, ParsedDocument), path.name
        chunks = chunk_document(document)
        assert document.language == "de"
        assert document.title
        assert all(chunk.heading_path for chunk in chunks)
        sizes += [chunk.tokens for chunk in chunks[:-1]]
    assert max(sizes) <= 1200
    assert sum(size >= 400 for size in sizes) > len(sizes) * 0.7
