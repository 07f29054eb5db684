"""`noesis events`: the contract with upstream systems: check a message, publish it, read its schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import IO, Any

import click
from pydantic import ValidationError

from cli.contract import INBOUND, PUBLIC, schema
from cli.reference import write_reference
from shared.errors import PermanentError
from shared.events import KNOWN_FIELDS, MESSAGES, DocumentSubmitted, Message, TenantMessage, decode
from shared.messaging import Outgoing, bus

MESSAGE_LIMIT = 10_000_000
"""Bytes Pub/Sub takes in one message (https://cloud.google.com/pubsub/quotas#resource_limits)."""

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,39}")


@click.group()
def events() -> None:
    """Events of upstream systems: validate, publish, schema."""


@events.command()
@click.argument("file", type=click.File("rb"))
def validate(file: IO[bytes]) -> None:
    """Check messages in FILE (- is standard input): a JSON object, or a list of them.

    Says for every field what is wrong, and never repeats content. Ends with status 1 when a message would be refused.
    """
    refused = 0
    for number, found in enumerate(_bodies(file), 1):
        problems = faults(found)
        refused += bool(problems)
        kind = found.get("name") if isinstance(found, dict) and found.get("name") in _names() else "message"
        click.echo(f"{number}: {kind}: {'refused' if problems else 'valid'}")
        for line in problems:
            click.echo(f"   {line}")
        for line in [] if problems else hints(found):
            click.echo(f"   note: {line}")
    if refused:
        raise click.exceptions.Exit(1)


@events.command()
@click.argument("file", type=click.File("rb"))
@click.option("--source", default="upstream", show_default=True, help="Publish as this source: topic documents-SOURCE.")
def publish(file: IO[bytes], source: str) -> None:
    """Publish the messages in FILE (- is standard input) as an upstream system would; all of them or none.

    Nothing is sent unless every message is valid.
    """
    messages: list[TenantMessage] = []
    for number, found in enumerate(_bodies(file), 1):
        problems = faults(found)
        message = None if problems else decode(json.dumps(found).encode(), {})
        if not isinstance(message, INBOUND) or not isinstance(message, TenantMessage):
            reason = "; ".join(problems) or "upstream systems do not publish this one"
            raise click.ClickException(f"Nothing was published. Message {number}: {reason}")
        messages.append(message)
    topic = f"documents-{source}"
    bus().publish([Outgoing(m.tenant_id, m.event_id, topic, m.data().decode(), m.attributes(), None) for m in messages])
    for message in messages:
        click.echo(f"{message.event_id}  {message.wire_name}  published to {topic}, trace {message.trace_id}")


@events.command("schema")
@click.argument("name", required=False, type=click.Choice(sorted(PUBLIC)))
def schema_(name: str | None) -> None:
    """Print the JSON Schema of an event, or the names of all public events."""
    if name is None:
        for one, kind in PUBLIC.items():
            direction = "in " if kind in INBOUND else "out"
            click.echo(f"{direction}  {one:<20} {(kind.__doc__ or '').splitlines()[0]}")
    else:
        click.echo(json.dumps(schema(PUBLIC[name]), indent=2, ensure_ascii=False))


@events.command()
@click.option("--into", default="docs", show_default=True, type=click.Path(path_type=Path), help="Folder to write to.")
def reference(into: Path) -> None:
    """Write the event reference, the JSON Schemas and the AsyncAPI document anew."""
    for path in write_reference(into):
        click.echo(str(path))


def faults(found: Any) -> list[str]:
    """Why a message would be refused, one line a field; empty when it is valid. Names fields, never values."""
    try:
        data = json.dumps(found).encode()
    except UnicodeEncodeError:
        return ["the text contains lone surrogates"]
    if len(data) > MESSAGE_LIMIT:
        return [f"it has more than {MESSAGE_LIMIT:,} bytes, which Pub/Sub does not take"]
    try:
        decode(data, {})
    except PermanentError as error:
        kind = _kind(found)
        return _fields(kind, found) if kind else [f"{error.message} {error.next_action}"]
    return []


def hints(found: dict[str, Any]) -> list[str]:
    """What is valid and probably not meant."""
    kind = _kind(found)
    assert kind is not None
    unknown = sorted(found.keys() - kind.model_fields.keys() - {"name", "version"})
    named = [name for name in unknown if _PLAIN_NAME.fullmatch(name)]
    lines = [f"{name}: not a field of {kind.wire_name}; it is ignored" for name in named]
    if len(named) < len(unknown):
        lines.append(f"{len(unknown) - len(named)} fields with unusual names are ignored")
    if "event_id" not in found:
        lines.append("event_id: without one, a message that is sent again is a new event")
    if kind in INBOUND and "source_version" not in found:
        lines.append("source_version: without one, occurred_at decides which version is newer")
    if kind in INBOUND and "source_version" not in found and "occurred_at" not in found:
        lines.append("occurred_at: without one, the time of publishing counts, and what is sent again is a new version")
    if kind is DocumentSubmitted and "access" not in found:
        lines.append("access: without it, every member of the tenant may see the document")
    return lines


def _kind(found: Any) -> type[Message] | None:
    if not isinstance(found, dict):
        return None
    name, version = found.get("name"), found.get("version")
    return MESSAGES.get((name, version)) if isinstance(name, str) and type(version) is int else None


def _names() -> set[str]:
    return {name for name, _ in MESSAGES}


def _fields(kind: type[Message], found: Any) -> list[str]:
    try:
        kind.model_validate(found)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_input=False, include_url=False, include_context=False):
            # A key of the sender's own (metadata) is content as well.
            place = ".".join(str(p) if isinstance(p, int) or p in KNOWN_FIELDS else "…" for p in problem["loc"])
            lines.append(f"{place or 'message'}: {problem['msg']}")
        return lines
    return ["the message cannot be read"]


def _bodies(file: IO[bytes]) -> list[Any]:
    """The messages of a file. Raises ClickException when it is not JSON."""
    try:
        found = json.loads(file.read())
    except (ValueError, RecursionError):
        raise click.ClickException("This is not UTF-8 JSON: give one JSON object, or a list of them.") from None
    messages = found if isinstance(found, list) else [found]
    if not messages:
        raise click.ClickException("There is no message in it.")
    return messages
