"""Start the model service: `python -m litellm_service --host 127.0.0.1 --port 4000`.

Reads LITELLM_MASTER_KEY, CHAT_MODEL, EMBEDDINGS_MODEL, EMBEDDINGS_DIM, EMBEDDINGS_API_BASE, EMBEDDINGS_API_KEY,
MORE_EMBEDDINGS_MODELS,
RERANK_MODEL, RERANK_API_BASE, RERANK_API_KEY, LITELLM_DATABASE_URL and the providers' own variables; ends with status 2
and one line when it may not start.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import socket
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import yaml

from litellm_service.configuration import StartRefused, check_version, own_address, process_environment, proxy_config


def main() -> None:
    """Check, configure and serve until a signal ends the process."""
    arguments = _arguments()
    try:
        check_version(version("litellm"))
        environment = process_environment(os.environ)
        _check_port(arguments.host, arguments.port)
        if "DATABASE_URL" in environment and find_spec("prisma") is None:
            raise StartRefused(
                "LITELLM_DATABASE_URL is set, but virtual keys need the package prisma in this environment"
            )
        base = yaml.safe_load((Path(__file__).parent / "config.yaml").read_text(encoding="utf-8"))
        config = proxy_config(base, environment, own_address(arguments.host, arguments.port))
    except StartRefused as refused:
        print(f"litellm_service: {refused}", file=sys.stderr)
        raise SystemExit(2) from None
    # uvicorn stops in order and then raises the signal again: end by an exception, so that the folder below goes too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    os.environ.clear()
    os.environ.update(environment)
    with tempfile.TemporaryDirectory(prefix="litellm-service-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        _serve(path, arguments.host, arguments.port)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m litellm_service", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=4000)
    return parser.parse_args()


def _check_port(host: str, port: int) -> None:
    """LiteLLM silently takes another port when its own is taken; here that is an error."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartRefused(f"cannot listen on {host}:{port}: {error.strerror}") from None


def _serve(config: Path, host: str, port: int) -> None:
    # Without collections in between the imports (a million objects that stay) take a fifth less time.
    gc.disable()
    # Late: the imports take ten seconds and read the environment set above.
    from litellm.proxy.proxy_cli import run_server
    from litellm.proxy.proxy_server import app

    from litellm_service import chats, counting, direct, logs, reranking

    if "DATABASE_URL" not in os.environ:
        counting.leave_out()
    # Before LiteLLM's own routes, the last of which takes every path.
    app.router.routes.insert(0, reranking.route())
    direct.install(app)
    chats.install(app)

    gc.freeze()
    # A chat makes thousands of objects and leaves no cycles behind that matter: looked for a thirtieth as often.
    gc.set_threshold(20_000, 20, 50)
    gc.enable()
    logs.install()
    # Logs go to stderr as JSON; what LiteLLM prints to stdout is a banner and hints for people.
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives as long as the process
    run_server(["--config", str(config), "--host", host, "--port", str(port)])


if __name__ == "__main__":
    main()
