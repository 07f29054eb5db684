"""`python -m local.bus`: one process that is Pub/Sub, Cloud Tasks and Cloud Scheduler for this machine."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from cronsim import CronSimError
from yaml import YAMLError

from local.bus import topology
from local.bus.broker import MESSAGE_BYTES, Broker
from local.bus.clock import Clock
from local.bus.http import Door
from local.bus.pubsub import Publisher, Subscriber
from local.bus.refusal import Refused
from local.bus.scheduler import Scheduler
from local.bus.store import Store
from local.bus.tasks import Tasks
from local.bus.tokens import Tokens

log = logging.getLogger("local.bus")

# A stream holds a thread for as long as it is open, a pull for some seconds.
_RPC_THREADS = 200
_GRACE = 1.0
# Without these the process has no memory and no time: better to end, and be started again with everything it promised.
_VITAL_THREADS = ("store", "clock")


def main() -> None:
    """Serve until SIGTERM or SIGINT; exit status 1 with one line of reason when it cannot start."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    arguments = _arguments()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.excepthook = _end_without_vital_threads
    try:
        Bus(arguments).run(stop)
    except BlockingIOError:
        sys.exit(f"bus: another process has {arguments.home} open")
    except (OSError, RuntimeError, ValueError, KeyError, Refused, CronSimError, YAMLError) as error:
        sys.exit(f"bus: {error}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m local.bus", description=__doc__)
    parser.add_argument("--topology", type=Path, required=True, help="terraform/topology.yaml")
    parser.add_argument("--home", type=Path, required=True, help="folder of the message file and the signing key")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--pubsub-port", type=int, default=8085)
    parser.add_argument("--http-port", type=int, default=8086)
    parser.add_argument("--tasks-port", type=int, default=8087)
    parser.add_argument("--project", default="noesis-local")
    parser.add_argument("--location", default="europe-west4", help="location of the topology's queues")
    parser.add_argument(
        "--push-base", action="append", default=[], metavar="SERVICE=URL", help="where a service listens; repeatable"
    )
    parser.add_argument("--issuer", default="", help="default: the HTTP address")
    parser.add_argument("--service-account", default="", help="default: pubsub-push@PROJECT.iam.gserviceaccount.com")
    parser.add_argument("--test-clock", action="store_true", help="serve POST /_clock/advance?seconds=N")
    return parser.parse_args()


class Bus:
    """Everything wired together, from parsed arguments."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Open the store and bind the ports; raises OSError or RuntimeError for a port that is taken."""
        home: Path = arguments.home
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        host, project = arguments.host, arguments.project
        self._project: str = project
        bases = dict(_pair(base) for base in arguments.push_base)
        declared = topology.read(arguments.topology, project, arguments.location, bases)
        account = arguments.service_account or f"pubsub-push@{project}.iam.gserviceaccount.com"
        self._store = Store(home / "bus.sqlite3")
        tokens = Tokens(home, arguments.issuer or f"http://{host}:{arguments.http_port}", account)
        self._clock = Clock()
        self._broker = Broker(self._store, self._clock, tokens, declared.parallel)
        self._tasks = Tasks(self._store, self._clock, tokens)
        self._scheduler = Scheduler(declared.schedules, self._broker, self._store, self._clock)
        clock = self._clock if arguments.test_clock else None
        with _port_in_words("--http-port", arguments.http_port):
            self._door = Door((host, arguments.http_port), self._broker, tokens, self._status, clock)
        publisher, subscriber = Publisher(self._broker), Subscriber(self._broker)
        with _port_in_words("--pubsub-port", arguments.pubsub_port):
            self._pubsub = _server(host, arguments.pubsub_port, publisher.handler(), subscriber.handler())
        with _port_in_words("--tasks-port", arguments.tasks_port):
            self._task_server = _server(host, arguments.tasks_port, self._tasks.handler())
        topology.apply(declared, self._broker, self._tasks, self._store)

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set, then end within three seconds; what was promised is on the disk."""
        self._clock.start()
        self._broker.start()
        self._tasks.start()
        self._scheduler.start()
        self._pubsub.start()
        self._task_server.start()
        threading.Thread(target=self._door.serve_forever, name="http", daemon=True).start()
        log.info("ready")
        while not stop.wait(1.0):
            pass  # a bare wait() is not woken by signals on every platform
        self._clock.stop()
        self._broker.stop()
        self._tasks.stop()
        ends = [server.stop(_GRACE) for server in (self._pubsub, self._task_server)]
        for end in ends:
            end.wait(_GRACE + 0.5)
        self._store.close()
        # The HTTP door is not waited for: a publish that has no answer was not promised.
        # Pushes under way may still wait for slow receivers, in threads nobody joins; their messages are not
        # acknowledged and come again.
        logging.shutdown()
        os._exit(0)

    def _status(self) -> dict[str, Any]:
        own = f"projects/{self._project}/"
        return {
            "subscriptions": {_short(one.policy.name, own): one.status() for one in self._broker.backlogs()},
            "queues": {_short(name, own): state for name, state in self._tasks.status().items()},
            "schedules": self._scheduler.status(),
        }


def _short(name: str, own: str) -> str:
    """The last part of a name of our project; the whole name of any other."""
    return name.rpartition("/")[2] if name.startswith(own) else name


def _pair(text: str) -> tuple[str, str]:
    service, sign, url = text.partition("=")
    if not sign or not url.startswith(("http://", "https://")):
        raise ValueError(f"--push-base {text}: expected SERVICE=URL")
    return service, url


@contextmanager
def _port_in_words(option: str, port: int) -> Iterator[None]:
    """Say which of the ports is the trouble."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"cannot listen on port {port}: it is taken or not allowed; choose another with {option}"
        ) from error


def _server(host: str, port: int, *handlers: grpc.GenericRpcHandler) -> grpc.Server:
    """A gRPC server bound to its port; raises RuntimeError when the port is taken."""
    limit = 2 * MESSAGE_BYTES
    options = [
        ("grpc.so_reuseport", 0),  # otherwise two buses share a port silently
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        # The client library pings idle streams every 30 s; the default would answer "too many pings".
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]
    server = grpc.server(ThreadPoolExecutor(_RPC_THREADS, thread_name_prefix="rpc"), options=options)
    server.add_generic_rpc_handlers(handlers)
    server.add_insecure_port(f"{host}:{port}")
    return server


def _end_without_vital_threads(failure: threading.ExceptHookArgs) -> None:
    threading.__excepthook__(failure)
    if failure.thread is not None and failure.thread.name in _VITAL_THREADS:
        logging.shutdown()
        os._exit(1)


if __name__ == "__main__":
    main()
