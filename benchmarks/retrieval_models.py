"""The model service on a free port, for benchmarks that need it as it runs (re-ranking)."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from benchmarks.retrieval_vectors import CHECKOUT, PYTHON
from shared.llm import LiteLLM
from shared.settings import Settings

START_SECONDS = 120


@contextmanager
def model_service() -> Iterator[LiteLLM]:
    """A client of the bundled models behind a LiteLLM proxy of its own. SystemExit when the service does not start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key, url = f"sk-{secrets.token_hex(16)}", f"http://127.0.0.1:{port}"
    command = [str(PYTHON), "-m", "litellm_service", "--port", str(port)]
    environment = os.environ | {"LITELLM_MASTER_KEY": key}
    with subprocess.Popen(command, cwd=CHECKOUT, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _alive(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the model service did not start (.venv-litellm: run `make up` once)")
                time.sleep(0.2)
            values: dict[str, Any] = {"litellm_url": url, "litellm_api_key": key, "database_url": "postgresql://unused"}
            models = LiteLLM(Settings(**values))
            # Loads the weights: on a busy machine that takes longer than a re-ranking may.
            models.embed(["warm"], model="use-v3", dimension=512, input_type="query")
            yield models
        finally:
            process.terminate()
            process.wait(30)


def _alive(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/liveliness", timeout=2).status_code == 200
    except httpx.TransportError:
        return False
