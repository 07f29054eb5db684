"""The contract with upstream systems, generated from `shared.events`: JSON Schemas and the AsyncAPI document.

`cli.reference` writes the pages. What is internal (commands between our own services) is no part of it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from shared.events import (
    Access,
    AnswerReady,
    BudgetNearlySpent,
    DocumentFailed,
    DocumentIndexed,
    DocumentRemoved,
    DocumentSubmitted,
    DocumentWithdrawn,
    Message,
)

INBOUND: tuple[type[Message], ...] = (DocumentSubmitted, DocumentWithdrawn)
OUTBOUND: tuple[type[Message], ...] = (DocumentIndexed, DocumentFailed, DocumentRemoved, AnswerReady, BudgetNearlySpent)
PUBLIC = {kind.wire_name: kind for kind in (*INBOUND, *OUTBOUND)}

SOURCE_TOPIC = "documents-{source}"
"""Every source of documents has a topic of its own; a source is bound to the tenants it may speak for."""

# The same field means the same in every event; `description` in shared.events goes first.
FIELDS = {
    "access": "Who may see the document; left out: every member of the tenant",
    "chunks": "Passages that can be found and cited",
    "collection": "Collection of the tenant that the document belongs to; made when it does not exist",
    "content": "The document itself, base64, at most 256 KiB of bytes; larger ones travel as `uri`",
    "conversation_id": "The conversation the question belongs to",
    "document_id": "Our id of the document; the same for all its versions",
    "event_id": "Id of this event; the same again is the same event",
    "external_id": "The document's id in the upstream system",
    "file_name": "Name of the file, for people; the type follows from the content",
    "groups": "Names of groups of the tenant",
    "idempotency_key": "Free for the sender",
    "media_type": "What the sender believes it is; the content decides",
    "members": "E-mail addresses of members of the tenant",
    "message": "The reason as a sentence for people; never document content",
    "metadata": "Names and values of the sender, at most 64; searches can filter by them; `attachment_of` and "
    "`attachment_depth` are ours and left out",
    "name": "Wire name of the event",
    "next_action": "What the sender can do about it, one sentence",
    "occurred_at": "When it happened, with time zone; left out: when it was published",
    "reason": "Stable code of the reason, see the table",
    "run_id": "The run that answered (or did not answer) the question",
    "source": "The source that the document came from",
    "source_version": "Version of the document in the upstream system; grows with every change",
    "state": "How the run ended: answered, failed or cancelled",
    "tenant_id": "The tenant that the event concerns; its source must be bound to it",
    "title": "Title for people; left out: from the document, else the file name",
    "traceparent": "W3C trace context that the work continues (https://www.w3.org/TR/trace-context/)",
    "uri": "Where the document lies: `gs://` in the tenant's folder of the object store (`file://` on a laptop)",
    "version": "Version of the event's shape; anything but a new optional field is a new version",
    "version_id": "Our id of the version that answers now",
}

_SHARED: dict[str, Any] = {
    "occurred_at": datetime(2026, 11, 21, 8, 30, tzinfo=UTC),
    "tenant_id": UUID("0f8b2c1e-7a34-4a7e-9f51-2f4f3c7d9e10"),
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}
_OUTCOME: dict[str, Any] = {
    **_SHARED,
    "source": "upstream",
    "external_id": "handbook-42",
    "source_version": 7,
    "document_id": UUID("3c7f0c8e-51a2-5b1d-8d0e-6f2c9b7a4e11"),
}

_MADE: tuple[Message, ...] = (
    DocumentSubmitted(
        **_SHARED,
        external_id="handbook-42",
        source_version=7,
        file_name="handbook.md",
        title="Handbook",
        collection="manuals",
        content="IyBIYW5kYm9vawoKVGhlIGltcGVsbGVyIGlzIGluc3BlY3RlZCBldmVyeSAyLDAwMCBob3Vycy4K",
        metadata={"department": "service"},
        access=Access(groups=("service",)),
    ),
    DocumentWithdrawn(**_SHARED, external_id="handbook-42", source_version=8),
    DocumentIndexed(**_OUTCOME, version_id=UUID("8f0f4c9e-0c55-5d6c-a4cf-11a7d2b35c01"), chunks=12),
    DocumentFailed(
        **_OUTCOME,
        reason="encrypted",
        message="The document is protected by a password.",
        next_action="Remove the protection and submit it again.",
    ),
    DocumentRemoved(**_OUTCOME),
    AnswerReady(
        **_SHARED,
        run_id=UUID("b3f1a0de-93c5-4b0e-8c39-77a2f7c5a101"),
        conversation_id=UUID("5f3c3c9a-2b7d-5f0e-9e61-3ed0a4b7c202"),
        state="answered",
    ),
    BudgetNearlySpent(
        **_SHARED,
        period="day",
        starts_at=datetime(2026, 11, 21, tzinfo=UTC),
        limit_eur="5",
        used_eur="4.0125",
    ),
)

EXAMPLES: dict[str, Message] = {
    one.wire_name: one.model_copy(update={"event_id": uuid5(NAMESPACE_URL, f"noesis2:example:{one.wire_name}")})
    for one in _MADE
}
"""One of every public event, the same every time."""


def schema(kind: type[Message]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of an event's body as it is on the wire."""
    inbound = kind in INBOUND
    made = kind.model_json_schema(mode="validation" if inbound else "serialization")
    properties: dict[str, Any] = {
        "name": {"const": kind.wire_name},
        "version": {"const": kind.wire_version},
        **made["properties"],
    }
    if not inbound:
        properties.pop("idempotency_key")  # ours is always empty
    for part in (properties, *(one["properties"] for one in made.get("$defs", {}).values())):
        for field, declared in part.items():
            part[field] = _field(field, declared)
    # What we send is always whole.
    required = [name for name in properties if not inbound or name in made.get("required", ())]
    finished: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:noesis2:event:{kind.wire_name}:{kind.wire_version}",
        "title": f"{kind.wire_name} {kind.wire_version}",
        "description": " ".join((kind.__doc__ or "").split()),
        "type": "object",
        "properties": properties,
        "required": ["name", "version", *(name for name in required if name not in ("name", "version"))],
    }
    if kind is DocumentSubmitted:
        finished["oneOf"] = [{"required": ["content"]}, {"required": ["uri"]}]
        properties["content"]["contentEncoding"] = "base64"
    if "$defs" in made:
        finished["$defs"] = {name: _untitled(one) for name, one in made["$defs"].items()}
    return finished


def _field(name: str, declared: dict[str, Any]) -> dict[str, Any]:
    shape = _untitled(declared)
    # Absent means None: null itself is never sent.
    options = [one for one in shape.get("anyOf", ()) if one.get("type") != "null"]
    if len(options) == 1:
        shape = {**_untitled(options[0]), **{k: v for k, v in shape.items() if k not in ("anyOf", "default")}}
    description = shape.pop("description", "") or FIELDS[name]
    return {"description": description, **shape}


def _untitled(declared: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in declared.items() if k != "title"}


ATTRIBUTES: dict[str, Any] = {
    "type": "object",
    "description": "The message attributes, all strings; for filters and archives. The body is what counts.",
    "properties": {
        "name": {"type": "string", "description": FIELDS["name"]},
        "version": {"type": "string", "description": FIELDS["version"]},
        "event_id": {"type": "string", "format": "uuid", "description": FIELDS["event_id"]},
        "tenant_id": {
            "type": "string",
            "format": "uuid",
            "description": "As in the body; a message in which the two differ is refused",
        },
        "traceparent": {"type": "string", "description": FIELDS["traceparent"]},
    },
}


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3.0 document (https://www.asyncapi.com/docs/reference/specification/v3.0.0), as plain data.

    Actions are ours: we receive what upstream sends, and send what upstream may subscribe to.
    """
    channels: dict[str, Any] = {
        "documents": {
            "address": SOURCE_TOPIC,
            "title": "Documents of one source",
            "description": "A Pub/Sub topic for each source of documents, bound to the tenants it may speak for.",
            "parameters": {"source": {"description": "Name of the source", "examples": ["upstream"]}},
            "messages": _references(INBOUND),
        }
    }
    operations: dict[str, Any] = {"receive-documents": _operation("receive", "documents", INBOUND)}
    for topic in sorted({kind.topic for kind in OUTBOUND}):
        kinds = tuple(kind for kind in OUTBOUND if kind.topic == topic)
        channels[topic] = {
            "address": topic,
            "description": "A Pub/Sub topic; listeners bring their own subscription.",
            "messages": _references(kinds),
        }
        operations[f"send-{topic}"] = _operation("send", topic, kinds)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "noesis2 events",
            "version": "1",
            "description": "What upstream systems publish and what they may subscribe to. Delivery is at least once "
            "and in any order; see events.md.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": {name: _message(kind) for name, kind in PUBLIC.items()}},
    }


def _references(kinds: tuple[type[Message], ...]) -> dict[str, Any]:
    return {kind.wire_name: {"$ref": f"#/components/messages/{kind.wire_name}"} for kind in kinds}


def _operation(action: str, channel: str, kinds: tuple[type[Message], ...]) -> dict[str, Any]:
    messages = [{"$ref": f"#/channels/{channel}/messages/{kind.wire_name}"} for kind in kinds]
    return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "messages": messages}


def _message(kind: type[Message]) -> dict[str, Any]:
    example = EXAMPLES[kind.wire_name]
    return {
        "name": kind.wire_name,
        "title": f"{kind.wire_name} {kind.wire_version}",
        "summary": " ".join((kind.__doc__ or "").split()),
        "headers": ATTRIBUTES,
        "payload": {"$ref": f"./schemas/{kind.wire_name}.json"},
        "examples": [{"headers": example.attributes(), "payload": body(example)}],
    }


def body(message: Message) -> dict[str, Any]:
    """A message as it is on the wire, without what an example does not need."""
    whole = {"name": message.wire_name, "version": message.wire_version}
    return whole | message.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
