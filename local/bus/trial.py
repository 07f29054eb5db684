"""A bus on free ports for the semantics suite and the benchmark, and Google's own emulator beside it."""

from __future__ import annotations

import base64
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from local.ports import free_ports

_STARTING = 120.0
"""Seconds; a busy machine needs many times the one that it takes."""
EMPTY_TOPOLOGY = "topics: {}\nsubscriptions: {}\nqueues: {}\nschedules: {}\nservices: {}\n"


class OurBus:
    """One `python -m local.bus` of its own; start, kill and start it again over the same home and ports."""

    def __init__(self, home: Path, topology: str = EMPTY_TOPOLOGY, push_bases: Mapping[str, str] | None = None) -> None:
        """`topology` is the text of a topology file, `push_bases` the address of each service in it."""
        self.home = home
        self.pubsub, self.http, self.tasks = (f"127.0.0.1:{port}" for port in free_ports(3))
        file = home / "topology.yaml"
        file.write_text(topology, encoding="utf-8")
        ports = ("--pubsub-port", self.pubsub), ("--http-port", self.http), ("--tasks-port", self.tasks)
        self._command = [sys.executable, "-m", "local.bus", "--topology", str(file), "--home", str(home)]
        self._command += [word for name, address in ports for word in (name, address.rpartition(":")[2])]
        self._command += [word for name, url in (push_bases or {}).items() for word in ("--push-base", f"{name}={url}")]
        self._command += ["--test-clock"]
        self._log = home / "bus.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it serves; raises RuntimeError with its last words if it does not."""
        checkout = Path(__file__).parents[2]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, cwd=checkout, stdout=log, stderr=log)
        _wait_until(self._serves, self._process, self._log)

    def _serves(self) -> bool:
        try:
            return bool(self.get("/healthz")["status"] == "ok")
        except (OSError, ValueError):
            return False

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> float:
        """SIGTERM; the seconds it took to end."""
        started = time.monotonic()
        self._end(signal.SIGTERM)
        return time.monotonic() - started

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None

    @property
    def pid(self) -> int:
        """The process id while it runs."""
        if self._process is None:
            raise RuntimeError("the bus does not run")
        return self._process.pid

    def advance(self, seconds: float) -> None:
        """Move the bus's clock forward."""
        self.post(f"/_clock/advance?seconds={seconds}", b"")

    def get(self, path: str) -> dict[str, Any]:
        """A JSON answer of the HTTP door."""
        with urllib.request.urlopen(f"http://{self.http}{path}", timeout=10) as answer:
            content: dict[str, Any] = json.load(answer)
        return content

    def post(self, path: str, body: bytes) -> dict[str, Any]:
        """The JSON answer to a POST; raises urllib.error.HTTPError for a refusal."""
        request = urllib.request.Request(f"http://{self.http}{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 # our own process
            content: dict[str, Any] = json.load(answer)
        return content


class Received(NamedTuple):
    """One request a receiver got."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The body as JSON."""
        content: dict[str, Any] = json.loads(self.body)
        return content

    @property
    def data(self) -> bytes:
        """The data of the message in a push request."""
        return base64.b64decode(self.json["message"]["data"])


class Receiver:
    """An HTTP server that keeps what it gets and answers what `answer` says (a status; it may block)."""

    def __init__(self, answer: Callable[[Received], int] = lambda request: 204, port: int = 0) -> None:
        self.answer = answer
        self.received: list[Received] = []
        self._changed = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_POST(self) -> None:  # the name http.server asks for
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receiver._got(Received(self.path, dict(self.headers.items()), body))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 # the signature http.server calls
                """Quiet."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def _got(self, request: Received) -> int:
        with self._changed:
            self.received.append(request)
            self._changed.notify_all()
        return self.answer(request)

    def wait_for(self, enough: Callable[[list[Received]], bool], seconds: float = 60) -> list[Received]:
        """What was received, once it is `enough`; raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: enough(self.received), seconds):
                raise TimeoutError(f"only {len(self.received)} requests arrived")
            return list(self.received)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def running_bus(
    home: Path, topology: str = EMPTY_TOPOLOGY, push_bases: Mapping[str, str] | None = None
) -> Iterator[OurBus]:
    """A running bus that is gone afterwards."""
    bus = OurBus(home, topology, push_bases)
    try:
        bus.start()
        yield bus
    finally:
        bus.stop()


def emulator_jar() -> Path | None:
    """The official emulator of the installed gcloud, or None where it or Java is missing."""
    gcloud = shutil.which("gcloud")
    if gcloud is None or shutil.which("java") is None:
        return None
    folder = Path(gcloud).resolve().parents[1] / "platform/pubsub-emulator/lib"
    return next(iter(sorted(folder.glob("cloud-pubsub-emulator-*.jar"))), None)


@contextmanager
def running_emulator(jar: Path, home: Path) -> Iterator[str]:
    """The address of a running official emulator that is gone afterwards."""
    (port,) = free_ports(1)
    command = ["java", "-jar", str(jar), "--host=127.0.0.1", f"--port={port}"]
    log = home / "emulator.log"
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        _wait_until(lambda: b"Server started" in log.read_bytes(), process, log)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(60)


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _STARTING
    while not ready():
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            process.wait(60)
            raise RuntimeError(f"did not start: {log.read_text(errors='replace')[-500:]}")
        time.sleep(0.02)
