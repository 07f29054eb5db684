"""Vectors of texts by the bundled models, computed once and kept under build/vectors/ (never committed)."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

CHECKOUT = Path(__file__).parents[1]
PYTHON = CHECKOUT / ".venv-litellm" / "bin" / "python"
CACHE = CHECKOUT / "build" / "vectors"

Vectors = NDArray[np.float32]


def vectors(
    texts: Sequence[str], model: str = "use-v3", input_type: Literal["query", "passage"] = "passage"
) -> Vectors:
    """One L2-normalised row a text, in order. Missing ones are encoded by the models' own environment."""
    CACHE.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256("\0".join([model, input_type, *texts]).encode()).hexdigest()[:24]
    path = CACHE / f"{model}-{key}.npy"
    if not path.exists():
        lines = "".join(json.dumps(text) + "\n" for text in texts)
        command = ["nice", "-n", "10", str(PYTHON), "-m", "benchmarks.retrieval_encode", model, input_type]
        made = path.with_suffix(".part.npy")
        subprocess.run([*command, str(made)], input=lines.encode(), check=True, cwd=CHECKOUT)
        made.rename(path)
    loaded: Vectors = np.load(path)
    return loaded
