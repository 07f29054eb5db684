"""The real LiteLLM proxy, in the environment of its own that it needs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from local.ports import free_ports

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / (".venv-litellm/Scripts/python.exe" if sys.platform == "win32" else ".venv-litellm/bin/python")


def command(port: int) -> list[str]:
    """The command that starts the service; skips where its environment is not installed."""
    if not PYTHON.exists():
        pytest.skip("the environment of the model service is not installed (.venv-litellm)")
    return [str(PYTHON), "-m", "litellm_service", "--port", str(port)]


@contextmanager
def running_proxy(settings: Mapping[str, str], folder: Path) -> Iterator[str]:
    """The service with these settings (it takes more than ten seconds to start), its log in the folder; its address."""
    (port,) = free_ports(1)
    environment = os.environ | settings | {"TMPDIR": str(folder)}
    url = f"http://127.0.0.1:{port}"
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command(port), cwd=ROOT, env=environment, stdout=log, stderr=log) as process,
        httpx.Client(base_url=url) as client,  # one: each loads the certificates, which costs what the start needs
    ):
        try:
            deadline = time.monotonic() + 170
            while not _alive(client):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, "the proxy did not come up"
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def _alive(client: httpx.Client) -> bool:
    try:
        return client.get("/health/liveliness").status_code == 200
    except httpx.TransportError:
        return False
