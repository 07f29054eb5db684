"""Publish a document to noesis2 with nothing but google-cloud-pubsub.

    python publisher.py --project PROJECT --tenant TENANT_ID handbook.md [--version 7] [--withdraw]

On a laptop set PUBSUB_EMULATOR_HOST (`noesis status` shows the address) and use the project noesis-local.
"""

from __future__ import annotations

import argparse
import base64
import json
import uuid
from datetime import datetime, timezone
from pathlib import Path

from google.cloud import pubsub_v1

INLINE_LIMIT = 256 * 1024  # bytes; larger documents travel as a URI


def main() -> None:
    arguments = parse()
    event = {
        "name": "document-withdrawn" if arguments.withdraw else "document-submitted",
        "version": 1,
        "event_id": str(uuid.uuid4()),
        "occurred_at": datetime.now(timezone.utc).isoformat(),
        "tenant_id": arguments.tenant,
        "external_id": arguments.external_id or arguments.file.name,
        # Grows with every change of the document; here the time of the file's last change will do.
        "source_version": arguments.version or arguments.file.stat().st_mtime_ns // 1000,
    }
    if not arguments.withdraw:
        content = arguments.file.read_bytes()
        if len(content) > INLINE_LIMIT:
            raise SystemExit("larger than 256 KiB: put it into the object store and send its `uri` instead")
        event |= {
            "file_name": arguments.file.name,
            "collection": arguments.collection,
            "content": base64.b64encode(content).decode(),
        }
    publisher = pubsub_v1.PublisherClient()
    topic = publisher.topic_path(arguments.project, f"documents-{arguments.source}")
    published = publisher.publish(topic, json.dumps(event).encode(), tenant_id=arguments.tenant, name=event["name"])
    # Wait: only a confirmed message is published.
    print(f"{event['name']} {event['event_id']} is message {published.result(timeout=30)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--project", required=True)
    parser.add_argument("--tenant", required=True, help="UUID of the tenant")
    parser.add_argument("--source", default="upstream", help="the source whose topic you may publish to")
    parser.add_argument("--external-id", default="", help="the document's id in your system; default: its file name")
    parser.add_argument("--version", type=int, default=0)
    parser.add_argument("--collection", default="default")
    parser.add_argument("--withdraw", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
