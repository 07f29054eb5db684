"""publish → push → ack in messages a second, the local bus beside Google's emulator, in one run.

`python -m benchmarks.bus [--messages N]`. Both get the same official client, the same messages of 400 bytes and the
same receiver: a process of its own that answers 200 to everything and counts distinct message ids.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import socketserver
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
from google.cloud import pubsub_v1
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from local.bus.trial import emulator_jar, running_bus, running_emulator

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_ID = re.compile(rb'"messageId": ?"(\d+)"')
_SENT = re.compile(rb'"sent": ?"([0-9.]+)"')
_TOPIC, _SUBSCRIPTION = "projects/bench/topics/bench", "projects/bench/subscriptions/bench"
_PATIENCE = 120.0


class _Receiver(socketserver.ThreadingTCPServer):
    """As little HTTP as a push needs, so that the receiver is not what is measured."""

    daemon_threads = True
    request_queue_size = 128
    seen: dict[bytes, float]


class _Connection(socketserver.StreamRequestHandler):
    server: _Receiver
    disable_nagle_algorithm = True

    def handle(self) -> None:
        while head := self._head():
            length = _LENGTH.search(head)
            body = self.rfile.read(int(length[1]) if length else 0)
            now = time.time()
            id_, sent = _ID.search(body), _SENT.search(body)
            if id_ is not None and sent is not None:
                self.server.seen.setdefault(id_[1], now - float(sent[1]))
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def _head(self) -> bytes:
        lines: list[bytes] = []
        while (line := self.rfile.readline()) not in (b"", b"\r\n"):
            lines.append(line)
        return b"".join(lines)


def _receive(pipe: Connection) -> None:
    """The receiving process: tells its port, and on request how many it has seen and how long they took."""
    server = _Receiver(("127.0.0.1", 0), _Connection, bind_and_activate=True)
    server.seen = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(server.server_address[1])
    while (question := pipe.recv()) != "end":
        pipe.send(len(server.seen) if question == "count" else list(server.seen.values()))
    server.shutdown()


def _clients(address: str) -> tuple[Any, Any]:
    publisher = pubsub_v1.PublisherClient(transport=PublisherGrpcTransport(channel=grpc.insecure_channel(address)))
    channel = grpc.insecure_channel(address)
    return publisher, pubsub_v1.SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))


def measure(address: str, messages: int, settled: Callable[[], bool] = lambda: True) -> tuple[float, float]:
    """Messages a second from the first publish to the last delivery (and `settled`), and the median time of one (s)."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    receiver = multiprocessing.get_context("spawn").Process(target=_receive, args=(theirs,), daemon=True)
    receiver.start()
    try:
        port = ours.recv()
        publisher, subscriber = _clients(address)
        publisher.create_topic(name=_TOPIC)
        push = {"push_endpoint": f"http://127.0.0.1:{port}/push"}
        subscriber.create_subscription(name=_SUBSCRIPTION, topic=_TOPIC, push_config=push, ack_deadline_seconds=60)
        _run(publisher, ours, min(200, messages), 0)
        started = time.monotonic()
        _run(publisher, ours, messages, min(200, messages))
        while not settled():
            time.sleep(0.005)
        seconds = time.monotonic() - started
        ours.send("latencies")
        latencies = ours.recv()
        publisher.stop()
        subscriber.close()
        return messages / seconds, statistics.median(latencies[min(200, messages) :])
    finally:
        ours.send("end")
        receiver.join(5)
        receiver.kill()


def _run(publisher: Any, receiver: Connection, messages: int, before: int) -> None:
    """Publish, and wait until as many more have arrived."""
    filler = b"x" * 400
    results = [publisher.publish(_TOPIC, filler, sent=f"{time.time():.6f}") for _ in range(messages)]
    for result in results:
        result.result(60)
    until = time.monotonic() + _PATIENCE
    while True:
        receiver.send("count")
        if receiver.recv() >= before + messages:
            return
        if time.monotonic() > until:
            raise TimeoutError("not everything was delivered")
        time.sleep(0.01)


def main() -> None:
    """Print both rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=5000)
    messages = parser.parse_args().messages
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with running_bus(home) as bus:

            def settled() -> bool:
                return bool(bus.get("/_status")["subscriptions"][_SUBSCRIPTION]["backlog"] == 0)

            ours, median = measure(bus.pubsub, messages, settled)
        print(f"bus       {ours:8.0f} messages/s   median {median * 1000:7.0f} ms   ({messages} messages, durable)")
        jar = emulator_jar()
        if jar is None:
            print("emulator  not installed: skipped")
            return
        with running_emulator(jar, home) as address:
            theirs, median = measure(address, messages)
        print(f"emulator  {theirs:8.0f} messages/s   median {median * 1000:7.0f} ms   (in memory)")
        print(f"ratio     {ours / theirs:8.2f}")


if __name__ == "__main__":
    main()
