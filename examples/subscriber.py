"""Listen to what became of documents, with nothing but google-cloud-pubsub.

    python subscriber.py --project PROJECT --subscription my-outcomes [--create] [--count 3]

`--create` makes the subscription to the topic document-outcomes; it receives what is published from then on.
On a laptop set PUBSUB_EMULATOR_HOST (`noesis status` shows the address) and use the project noesis-local.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import threading
from typing import Any

from google.api_core.exceptions import AlreadyExists
from google.cloud import pubsub_v1


def main() -> None:
    arguments = parse()
    subscriber = pubsub_v1.SubscriberClient()
    path = subscriber.subscription_path(arguments.project, arguments.subscription)
    if arguments.create:
        topic = subscriber.topic_path(arguments.project, "document-outcomes")
        with contextlib.suppress(AlreadyExists):
            subscriber.create_subscription(request={"name": path, "topic": topic})
        print("listening", flush=True)
    handled: set[str] = set()  # a real system keeps these where it keeps its own work
    enough = threading.Event()

    def handle(message: pubsub_v1.subscriber.message.Message) -> None:
        event = json.loads(message.data)
        if event["event_id"] not in handled:  # at least once: the same event may come again
            print(json.dumps(tell(event), ensure_ascii=False), flush=True)
            handled.add(event["event_id"])
        message.ack()  # last: what is not acknowledged comes again
        if arguments.count and len(handled) >= arguments.count:
            enough.set()

    stream = subscriber.subscribe(path, callback=handle)
    try:
        enough.wait(arguments.seconds)
    finally:
        stream.cancel()
        stream.result(timeout=30)
        subscriber.close()
    if arguments.count and not enough.is_set():
        raise SystemExit(f"only {len(handled)} events came")


def tell(event: dict[str, Any]) -> dict[str, Any]:
    """What a system that sent the document wants to know; unknown names are left alone."""
    told = {key: event.get(key) for key in ("name", "external_id", "source_version")}
    if event["name"] == "document-failed":
        told |= {key: event[key] for key in ("reason", "message", "next_action")}
    return told


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", required=True)
    parser.add_argument("--subscription", required=True)
    parser.add_argument("--create", action="store_true")
    parser.add_argument("--count", type=int, default=0, help="end after this many events; default: never")
    parser.add_argument("--seconds", type=float, default=None, help="end after this time at the latest")
    return parser.parse_args()


if __name__ == "__main__":
    main()
