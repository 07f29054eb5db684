"""Chunks per second beside semantic-text-splitter: `python -m benchmarks.chunking`.

Both get the same texts and the same task: at most 800 tokens, 80 of overlap, along the structure. The peer counts with
its built-in tokenizer, which is what its documentation offers for token limits; with our estimate as its counter; and,
for orientation, by characters (3,200, no tokens, no languages, no heading paths). Processor time, best of five turns.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from functions.ingest.chunking import chunk_document, count_tokens
from functions.ingest.parsing import ParsedDocument, language, parse

SHARED = Path(os.environ.get("NOESIS_SHARED") or Path(__file__).parents[1].parent / "shared")
TURNS = 5


def megabytes_per_second(work: Callable[[], object], size: int, turns: int = TURNS) -> float:
    best = float("inf")
    for _ in range(turns):
        begun = time.process_time()
        work()
        best = min(best, time.process_time() - begun)
    return size / 1e6 / best


def peers(documents: Sequence[ParsedDocument], sources: Sequence[str], ours: float) -> None:
    """The peer in its settings, each with the ratio to ours."""
    try:
        import semantic_text_splitter as peer
    except ImportError:
        print("skipped: semantic-text-splitter is not installed (0.33.1 was measured)")
        return
    texts = [document.text for document in documents]
    markdown, plain = peer.MarkdownSplitter, peer.TextSplitter
    settings: list[tuple[str, Any, Sequence[str], int]] = [
        ("tokens, Markdown", markdown.from_tiktoken_model("gpt-4", 800, overlap=80), sources[:40], 1),
        ("tokens, text", plain.from_tiktoken_model("gpt-4", 800, overlap=80), texts[:40], 1),
        ("our estimate, Markdown", markdown.from_callback(count_tokens, 800, overlap=80), sources, 3),
        ("our estimate, text", plain.from_callback(count_tokens, 800, overlap=80), texts, 3),
        ("characters, Markdown", markdown(3200, overlap=320), sources, 3),
        ("characters, text", plain(3200, overlap=320), texts, 3),
    ]
    for name, splitter, inputs, turns in settings:
        size = sum(map(len, inputs))
        speed = megabytes_per_second(lambda s=splitter, i=inputs: [s.chunk_indices(text) for text in i], size, turns)  # type: ignore[misc]
        print(f"semantic-text-splitter, {name:<24} {speed:7.2f} MB/s   ours is {ours / speed:5.1f} times as fast")


def main() -> int:
    folder = SHARED / "data" / "laws"
    if not folder.is_dir():
        print("skipped: ../shared/data is absent")
        return 0
    paths = sorted(folder.glob("*.md"))
    sources = [path.read_text(encoding="utf-8") for path in paths]
    documents = [parse(source.encode(), name=path.name) for source, path in zip(sources, paths, strict=True)]
    size = sum(len(document.text) for document in documents)
    chunks = [chunk for document in documents for chunk in chunk_document(document)]
    ours = megabytes_per_second(lambda: [chunk_document(document) for document in documents], size)
    print(f"{len(documents)} laws, {size / 1e6:.1f} MB, {len(chunks)} chunks")
    print(f"ours, with languages, heading paths and positions {ours:7.2f} MB/s")
    counting = megabytes_per_second(lambda: [count_tokens(document.text) for document in documents], size)
    print(f"count_tokens alone                                {counting:7.2f} MB/s")
    peers(documents, sources, ours)
    sizes = sorted(chunk.tokens for chunk in chunks)
    print(
        f"tokens a chunk: median {sizes[len(sizes) // 2]}, 90 % up to {sizes[len(sizes) * 9 // 10]}, most {sizes[-1]}"
    )
    print(f"languages: {dict(Counter(chunk.language for chunk in chunks))}")
    asked = language._model.cache_info()
    print(f"chunks whose language took the model: {asked.hits + asked.misses} calls in all turns")
    return 0


if __name__ == "__main__":
    sys.exit(main())
