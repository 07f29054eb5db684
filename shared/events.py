"""Every event and command of the product: what travels over Pub/Sub, and nothing else.

An event is past tense and has any number of listeners; a command is imperative and has one performer. Wire name and
version never change; a new optional field is the same version, anything else becomes `…V2` beside it and both are
handled until the old one is drained. On the wire a message is JSON in `data` with the fields below plus `name` and
`version`; the attributes repeat name, version, event id, tenant and traceparent, because filters and archives need
them. Delivery attempt and ordering key are never read, so a raw push body is enough. Pure: no I/O.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Self
from uuid import UUID, uuid4

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.errors import PermanentError

INLINE_LIMIT = 256 * 1024
"""Bytes of content an event may carry (REQUIREMENTS section 3); larger documents travel as a URI."""

# All zeros are not an id (https://www.w3.org/TR/trace-context/#traceparent-header-field-values).
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_UNSAFE = re.compile("[\x00\ud800-\udfff]")


def new_traceparent() -> str:
    """A fresh W3C traceparent, sampled (https://www.w3.org/TR/trace-context/)."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def _clean(value: str) -> str:
    # PostgreSQL refuses NUL, and a lone surrogate desynchronises pg8000 (FACTS): stop both at the door.
    if _UNSAFE.search(value):
        raise ValueError("must not contain NUL or lone surrogates")
    return value


def _traceparent(value: str) -> str:
    return value if _TRACEPARENT.fullmatch(value) else new_traceparent()


def _moment(value: datetime) -> datetime:
    # What overflows in UTC would fail on every delivery instead of being refused once.
    try:
        value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be a time that exists in UTC") from None
    return value


Text = Annotated[str, AfterValidator(_clean)]
Name = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_clean)]
COLLECTION_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
SourceVersion = Annotated[int, Field(ge=0, lt=2**63)]


class Message(BaseModel):
    """What every event and command carries: id, time, idempotency key and trace."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    wire_name: ClassVar[str]
    wire_version: ClassVar[int] = 1
    topic: ClassVar[str]

    event_id: UUID = Field(default_factory=uuid4)
    occurred_at: Annotated[AwareDatetime, AfterValidator(_moment)] = Field(default_factory=lambda: datetime.now(UTC))
    idempotency_key: Annotated[Text, Field(max_length=256)] = ""
    traceparent: Annotated[str, AfterValidator(_traceparent)] = Field(default_factory=new_traceparent)

    def data(self) -> bytes:
        """The message body: UTF-8 JSON."""
        body = {"name": self.wire_name, "version": self.wire_version} | self.model_dump(mode="json", exclude_none=True)
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()

    def attributes(self) -> dict[str, str]:
        """The message attributes, all strings."""
        return {
            "name": self.wire_name,
            "version": str(self.wire_version),
            "event_id": str(self.event_id),
            "traceparent": self.traceparent,
        }

    @property
    def trace_id(self) -> str:
        """W3C trace id, 32 hex digits."""
        return self.traceparent[3:35]


class TenantMessage(Message):
    """A message that concerns one tenant."""

    tenant_id: UUID

    def attributes(self) -> dict[str, str]:
        """The message attributes, with the tenant."""
        return super().attributes() | {"tenant_id": str(self.tenant_id)}


class Access(BaseModel):
    """Who may see a document, by the names upstream knows. Both empty: every member of the tenant."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    members: tuple[Name, ...] = Field(default=(), max_length=1000, description="E-mail addresses of members")
    groups: tuple[Name, ...] = Field(default=(), max_length=1000, description="Names of groups")


class DocumentSubmitted(TenantMessage):
    """A document, new or in a new version, from an upstream system. Content inline or behind a URI."""

    wire_name = "document-submitted"
    topic = "documents-upstream"

    external_id: Name = Field(description="The document's id in the upstream system")
    source_version: SourceVersion | None = Field(
        default=None, description="Grows with every change upstream; without it the time of the event counts (µs)"
    )
    file_name: Annotated[Text, Field(max_length=512)] = ""
    title: Annotated[Text, Field(max_length=512)] = ""
    media_type: Annotated[Text, Field(max_length=255)] = ""
    collection: Annotated[str, Field(pattern=COLLECTION_NAME)] = "default"
    content: Annotated[str, Field(description="Base64, at most 256 KiB of bytes")] | None = None
    uri: Annotated[Text, Field(max_length=2048)] | None = None
    metadata: dict[Name, Name] = Field(default_factory=dict, max_length=64)
    access: Access = Access()

    @model_validator(mode="after")
    def _content_or_uri(self) -> Self:
        if (self.content is None) == (self.uri is None):
            raise ValueError("give either content (base64) or uri")
        if self.content is not None:
            self.content_bytes()
        return self

    def content_bytes(self) -> bytes:
        """The inline content. Raises ValueError when it is not base64 or larger than INLINE_LIMIT."""
        if self.content is None:
            raise ValueError("this document travels as a URI")
        if len(self.content) > INLINE_LIMIT * 4 // 3 + 4:
            raise ValueError(f"inline content is limited to {INLINE_LIMIT} bytes; send a uri instead")
        try:
            raw = base64.b64decode(self.content, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("content is not base64") from None
        if len(raw) > INLINE_LIMIT:
            raise ValueError(f"inline content is limited to {INLINE_LIMIT} bytes; send a uri instead")
        return raw

    def version_number(self) -> int:
        """The source version, or the time of the event in microseconds since 1970."""
        if self.source_version is not None:
            return self.source_version
        return max(0, int(self.occurred_at.timestamp() * 1_000_000))


class DocumentWithdrawn(TenantMessage):
    """The upstream system no longer has (or no longer shares) this document."""

    wire_name = "document-withdrawn"
    topic = "documents-upstream"

    external_id: Name
    source_version: SourceVersion | None = None

    def version_number(self) -> int:
        """The source version, or the time of the event in microseconds since 1970."""
        if self.source_version is not None:
            return self.source_version
        return max(0, int(self.occurred_at.timestamp() * 1_000_000))


class EmbedChunks(TenantMessage):
    """Command: embed these chunks of a version in one vector space. At most 512, one provider request."""

    wire_name = "embed-chunks"
    topic = "embed-chunks"

    document_id: UUID
    version_id: UUID
    space_id: UUID
    chunk_ids: tuple[UUID, ...] = Field(min_length=1, max_length=512)


class AnswerQuestion(TenantMessage):
    """Command: answer the question of a run."""

    wire_name = "answer-question"
    topic = "answer-question"

    run_id: UUID


class RunJob(Message):
    """Command: run a maintenance job for one slot of its schedule."""

    wire_name = "run-job"
    topic = "run-job"

    job: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
    slot: AwareDatetime


class DocumentIndexed(TenantMessage):
    """A version became searchable."""

    wire_name = "document-indexed"
    topic = "document-outcomes"

    source: str
    external_id: str
    source_version: int
    document_id: UUID
    version_id: UUID
    chunks: int


class DocumentFailed(TenantMessage):
    """A version will not become searchable; an earlier one goes on answering."""

    wire_name = "document-failed"
    topic = "document-outcomes"

    source: str
    external_id: str
    source_version: int
    document_id: UUID
    reason: str
    message: str
    next_action: str


class DocumentRemoved(TenantMessage):
    """A document is no longer part of any answer."""

    wire_name = "document-removed"
    topic = "document-outcomes"

    source: str
    external_id: str
    source_version: int
    document_id: UUID


class AnswerReady(TenantMessage):
    """A run ended: answered, failed or cancelled."""

    wire_name = "answer-ready"
    topic = "answers"

    run_id: UUID
    conversation_id: UUID
    state: str


class BudgetNearlySpent(TenantMessage):
    """Of a tenant's limit for a day or month four fifths are spent or reserved; told once a period and limit."""

    wire_name = "budget-nearly-spent"
    topic = "budgets"

    period: str = Field(description="`day` or `month`, in UTC")
    starts_at: AwareDatetime = Field(description="When the period began")
    limit_eur: str = Field(description="Decimal number of EUR")
    used_eur: str = Field(description="Spent and reserved, decimal number of EUR")


MESSAGES: dict[tuple[str, int], type[Message]] = {
    (message.wire_name, message.wire_version): message
    for message in (
        DocumentSubmitted,
        DocumentWithdrawn,
        EmbedChunks,
        AnswerQuestion,
        RunJob,
        DocumentIndexed,
        DocumentFailed,
        DocumentRemoved,
        AnswerReady,
        BudgetNearlySpent,
    )
}


PUBLISHED = "CloudPubSubDeadLetterSourceTopicPublishTime"
"""Attribute with the time a message was first published: Pub/Sub's own name for it on what it forwards to a dead-letter
topic (https://cloud.google.com/pubsub/docs/handling-failures); the doors add it to everything they take."""

FUTURE = timedelta(days=1)
"""How far a sender's clock may be ahead. A time beyond that would beat every later version and every deletion."""


def decode(data: bytes, attributes: Mapping[str, str]) -> Message:
    """The message behind a body and its attributes.

    Without `occurred_at` the time of the first publish counts (attribute PUBLISHED), so that a redelivery or a replay
    is never newer than what was sent after it.

    Raises PermanentError `malformed-message`, `unknown-message` or `tenant-mismatch`; the text names fields, never
    their values, because values are content.
    """
    try:
        body = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):  # ValueError: not UTF-8, not JSON, or a number of more than 4300 digits
        raise _malformed("the data is not UTF-8 JSON") from None
    if not isinstance(body, dict):
        raise _malformed("the data is not a JSON object")
    name, version = body.get("name"), body.get("version")
    kind = MESSAGES.get((name, version)) if isinstance(name, str) and type(version) is int else None
    if kind is None:
        raise PermanentError(
            "unknown-message",
            "The message has a name or version that this release does not know.",
            "Check `name` and `version` against docs/events.md.",
        )
    published = published_at(attributes)
    try:
        message = kind.model_validate(_dated(body, data, published))
    except ValidationError as error:
        fields = sorted({_where(problem) for problem in error.errors(include_input=False, include_url=False)})
        raise _malformed("; ".join(fields)[:1000]) from None
    if published is not None and message.occurred_at > published + FUTURE:
        raise _malformed("occurred_at: lies more than a day after the message was published")
    stated = attributes.get("tenant_id")
    if stated is not None and isinstance(message, TenantMessage) and stated.lower() != str(message.tenant_id):
        raise PermanentError(
            "tenant-mismatch",
            "The attribute tenant_id and the tenant in the data differ.",
            "Send the same tenant in both, or leave the attribute out.",
        )
    return message


def published_at(attributes: Mapping[str, str]) -> datetime | None:
    """When a message was first published, by its attributes; None where they do not say."""
    try:
        found = datetime.fromisoformat(attributes.get(PUBLISHED, ""))
        return found.astimezone(UTC) if found.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _dated(body: dict[str, Any], data: bytes, published: datetime | None) -> dict[str, Any]:
    """The body with the time it was first published, if it tells no time itself.

    Two submissions of a document in one publish request have the same millisecond: the microseconds follow from the
    bytes, so that they stay two versions and each is the same one on every delivery.
    """
    if published is None or "occurred_at" in body:
        return body
    micro = published.microsecond // 1000 * 1000 + zlib.crc32(data) % 1000
    return body | {"occurred_at": published.replace(microsecond=micro)}


def submission_head(data: bytes, attributes: Mapping[str, str]) -> DocumentSubmitted | None:
    """What a submission that `decode` refuses still says about itself: tenant, document, version, trace; no content.

    None when it is no submission, or names no tenant (or two) or no document. A version or time that cannot be read
    counts as absent, so the version is then the time of publishing.
    """
    try:
        body = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or body.get("name") != DocumentSubmitted.wire_name:
        return None
    for versioning in (("source_version", "occurred_at"), ("occurred_at",), ()):
        kept = {field: body[field] for field in ("tenant_id", "external_id", *versioning) if field in body}
        trace = body.get("traceparent")
        try:
            dated = _dated(kept, data, published_at(attributes))
            head = DocumentSubmitted.model_validate(dated | {"content": "", "traceparent": trace or ""})
        except ValidationError:
            continue
        stated = attributes.get("tenant_id")
        return head if stated is None or stated.lower() == str(head.tenant_id) else None
    return None


def _where(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"] if isinstance(part, int) or part in KNOWN_FIELDS)
    return f"{place or 'message'}: {problem['msg']}"


KNOWN_FIELDS = {field for message in MESSAGES.values() for field in message.model_fields} | {"members", "groups"}


def _malformed(detail: str) -> PermanentError:
    return PermanentError(
        "malformed-message", f"The message cannot be read: {detail}.", "Check it with `noesis events validate`."
    )
