"""Encode texts with a bundled model: JSON lines of texts on standard input, a .npy file as argument.

Runs in the environment of the models: `.venv-litellm/bin/python -m benchmarks.retrieval_encode use-v3 query out.npy`.
"""

from __future__ import annotations

import json
import sys
from typing import Literal, cast

import numpy as np

from litellm_service.vectors import model, slices


def main() -> None:
    name, input_type, path = sys.argv[1:4]
    texts = [json.loads(line) for line in sys.stdin]
    found = model(name)
    kind = cast("Literal['query', 'passage']", input_type)
    rows = found.pool.map(lambda part: found.encode(part, kind), slices(texts))
    np.save(path, np.concatenate(list(rows)))


if __name__ == "__main__":
    main()
