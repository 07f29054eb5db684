"""What travels over the bus: whatever comes in becomes a message or a refusal that quotes nothing."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import events
from shared.errors import PermanentError
from shared.events import (
    INLINE_LIMIT,
    MESSAGES,
    PUBLISHED,
    AnswerQuestion,
    AnswerReady,
    BudgetNearlySpent,
    DocumentFailed,
    DocumentIndexed,
    DocumentRemoved,
    DocumentSubmitted,
    DocumentWithdrawn,
    EmbedChunks,
    Message,
    RunJob,
    TenantMessage,
    decode,
)

TENANT = UUID("5b0f6f0e-58a5-4f0f-9a39-3c1f8f4b7f10")
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
ENVELOPE = {"event_id", "occurred_at", "idempotency_key", "traceparent"}

GOLDEN: dict[tuple[str, int], tuple[str, set[str], set[str]]] = {
    # (name, version): (topic, fields that must be there, fields that may be there)
    ("document-submitted", 1): (
        "documents-upstream",
        {"tenant_id", "external_id"},
        {
            "source_version",
            "file_name",
            "title",
            "media_type",
            "collection",
            "content",
            "uri",
            "metadata",
            "access",
        },
    ),
    ("document-withdrawn", 1): ("documents-upstream", {"tenant_id", "external_id"}, {"source_version"}),
    ("embed-chunks", 1): (
        "embed-chunks",
        {"tenant_id", "document_id", "version_id", "space_id", "chunk_ids"},
        set(),
    ),
    ("answer-question", 1): ("answer-question", {"tenant_id", "run_id"}, set()),
    ("run-job", 1): ("run-job", {"job", "slot"}, set()),
    ("document-indexed", 1): (
        "document-outcomes",
        {"tenant_id", "source", "external_id", "source_version", "document_id", "version_id", "chunks"},
        set(),
    ),
    ("document-failed", 1): (
        "document-outcomes",
        {
            "tenant_id",
            "source",
            "external_id",
            "source_version",
            "document_id",
            "reason",
            "message",
            "next_action",
        },
        set(),
    ),
    ("document-removed", 1): (
        "document-outcomes",
        {"tenant_id", "source", "external_id", "source_version", "document_id"},
        set(),
    ),
    ("answer-ready", 1): ("answers", {"tenant_id", "run_id", "conversation_id", "state"}, set()),
    ("budget-nearly-spent", 1): ("budgets", {"tenant_id", "period", "starts_at", "limit_eur", "used_eur"}, set()),
}
"""The contract with everyone outside. A new optional field is added here; nothing is taken away or required later."""

EXAMPLES: tuple[Message, ...] = (
    DocumentSubmitted(
        tenant_id=TENANT,
        external_id="SharePoint/4711",
        source_version=3,
        file_name="Urlaub.pdf",
        title="Urlaubsordnung „neu“",
        media_type="application/pdf",
        content=base64.b64encode(b"%PDF-1.7").decode(),
        metadata={"Abteilung": "Personal"},
        access=events.Access(members=("eva@nordwind.example",), groups=("Betriebsrat",)),
    ),
    DocumentSubmitted(tenant_id=TENANT, external_id="2", uri="gs://bucket/blobs/x", collection="handbook-2026"),
    DocumentWithdrawn(tenant_id=TENANT, external_id="2"),
    EmbedChunks(
        tenant_id=TENANT, document_id=uuid4(), version_id=uuid4(), space_id=uuid4(), chunk_ids=(uuid4(), uuid4())
    ),
    AnswerQuestion(tenant_id=TENANT, run_id=uuid4(), idempotency_key="k" * 256),
    RunJob(job="sweep", slot=NOON),
    DocumentIndexed(
        tenant_id=TENANT,
        source="upstream",
        external_id="2",
        source_version=2**63 - 1,
        document_id=uuid4(),
        version_id=uuid4(),
        chunks=17,
    ),
    DocumentFailed(
        tenant_id=TENANT,
        source="upstream",
        external_id="2",
        source_version=0,
        document_id=uuid4(),
        reason="too-large",
        message="Zu groß.",
        next_action="Split it.",
    ),
    DocumentRemoved(tenant_id=TENANT, source="web", external_id="2", source_version=1, document_id=uuid4()),
    AnswerReady(tenant_id=TENANT, run_id=uuid4(), conversation_id=uuid4(), state="answered"),
    BudgetNearlySpent(
        tenant_id=TENANT, period="day", starts_at=datetime(2026, 11, 21, tzinfo=UTC), limit_eur="5", used_eur="4.1"
    ),
)


def _body(**fields: Any) -> dict[str, Any]:
    """A valid document-submitted, with fields changed; None takes a field away."""
    body: dict[str, Any] = {
        "name": "document-submitted",
        "version": 1,
        "tenant_id": str(TENANT),
        "external_id": "4711",
        "content": base64.b64encode(b"text").decode(),
    } | fields
    return {name: value for name, value in body.items() if value is not None}


def _refusal(body: object, attributes: dict[str, str] | None = None) -> PermanentError:
    with pytest.raises(PermanentError) as caught:
        decode(json.dumps(body).encode(), attributes or {})
    return caught.value


def test_wire_names_versions_topics_and_fields_are_frozen() -> None:
    """Whoever renames a message, takes a field away or requires a new one breaks upstream systems, and this test."""
    assert {
        key: (
            kind.topic,
            {name for name, field in kind.model_fields.items() if field.is_required()},
            {name for name, field in kind.model_fields.items() if not field.is_required()} - ENVELOPE,
        )
        for key, kind in MESSAGES.items()
    } == GOLDEN
    assert all(set(kind.model_fields) >= ENVELOPE for kind in MESSAGES.values())


def test_the_examples_cover_every_message() -> None:
    """A new message comes with an example, so that the round trip below holds for it too."""
    assert {type(example) for example in EXAMPLES} == set(MESSAGES.values())


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: m.wire_name)
def test_a_message_survives_its_way_over_the_wire(message: Message) -> None:
    """What is decoded equals what was encoded, to the last field."""
    assert decode(message.data(), message.attributes()) == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: m.wire_name)
def test_attributes_are_strings_and_repeat_the_envelope(message: Message) -> None:
    """Filters and archives read attributes; Pub/Sub takes strings only."""
    attributes = message.attributes()
    assert all(type(key) is str and type(value) is str for key, value in attributes.items())
    assert attributes["name"] == message.wire_name
    assert attributes["version"] == "1"
    assert attributes["event_id"] == str(message.event_id)
    assert attributes["traceparent"] == message.traceparent
    assert ("tenant_id" in attributes) is isinstance(message, TenantMessage)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: m.wire_name)
def test_the_body_alone_is_enough(message: Message) -> None:
    """A raw push that lost its attributes still says everything."""
    assert decode(message.data(), {}) == message


def test_an_unknown_optional_field_of_a_later_release_is_ignored() -> None:
    """Adding an optional field is the same version: an older release reads on."""
    message = decode(json.dumps(_body(mood="sunny")).encode(), {})
    assert isinstance(message, DocumentSubmitted)
    assert not hasattr(message, "mood")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"null",
        b"[]",
        b'"document-submitted"',
        b"17",
        b"[" * 100_000,
        b'{"version": ' + b"1" * 5000 + b"}",
        b"NaN",
    ],
    ids=["empty", "not-utf8", "cut", "null", "list", "text", "number", "deep", "digits", "nan"],
)
def test_what_is_not_a_json_object_is_malformed(data: bytes) -> None:
    """Every unreadable body gets the same typed refusal."""
    with pytest.raises(PermanentError) as caught:
        decode(data, {})
    assert caught.value.reason == "malformed-message"
    assert caught.value.next_action


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("document-deleted", 1),
        ("document-submitted", 2),
        ("document-submitted", "1"),
        ("document-submitted", True),
        ("document-submitted", 1.0),
        ("", 1),
        (None, 1),
        ("document-submitted", None),
        (["document-submitted"], 1),
        ({"a": 1}, 1),
    ],
)
def test_an_unknown_name_or_version_is_refused_by_name(name: object, version: object) -> None:
    """A release that does not know a message says so, and never guesses."""
    assert _refusal(_body(name=name, version=version)).reason == "unknown-message"


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"tenant_id": None}, "tenant_id"),
        ({"tenant_id": "acme"}, "tenant_id"),
        ({"external_id": None}, "external_id"),
        ({"external_id": ""}, "external_id"),
        ({"external_id": "x" * 513}, "external_id"),
        ({"external_id": "a\x00b"}, "external_id"),
        ({"external_id": "a\ud800b"}, "external_id"),
        ({"title": "\udfff"}, "title"),
        ({"file_name": "a\x00.pdf"}, "file_name"),
        ({"media_type": "text/\x00"}, "media_type"),
        ({"idempotency_key": "\x00"}, "idempotency_key"),
        ({"idempotency_key": "k" * 257}, "idempotency_key"),
        ({"metadata": {"k\x00": "v"}}, "metadata"),
        ({"metadata": {"k": "v\ud8ff"}}, "metadata"),
        ({"metadata": {str(n): "v" for n in range(65)}}, "metadata"),
        ({"access": {"members": ["\x00"]}}, "access.members.0"),
        ({"access": {"groups": ["g"] * 1001}}, "access.groups"),
        ({"access": {"everyone": True}}, "access"),
        ({"source_version": -1}, "source_version"),
        ({"source_version": 2**63}, "source_version"),
        ({"source_version": 1.5}, "source_version"),
        ({"collection": "Hand Book"}, "collection"),
        ({"collection": "../x"}, "collection"),
        ({"occurred_at": "2026-11-21T12:00:00"}, "occurred_at"),
        ({"event_id": "7"}, "event_id"),
        ({"content": "nicht base64!"}, "message"),
        ({"content": None}, "message"),
        ({"uri": "gs://b/o"}, "message"),
        ({"content": None, "uri": "gs://b/\x00"}, "uri"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, object], place: str) -> None:
    """The sender learns which field to mend; NUL and lone surrogates never get past the door."""
    error = _refusal(_body(**fields))
    assert error.reason == "malformed-message"
    assert f"{place}: " in error.message


def test_inline_content_ends_at_its_limit() -> None:
    """256 KiB travel inline; one byte more has to travel as a URI, and the refusal says so."""
    full = b"x" * INLINE_LIMIT
    message = decode(json.dumps(_body(content=base64.b64encode(full).decode())).encode(), {})
    assert isinstance(message, DocumentSubmitted)
    assert message.content_bytes() == full
    error = _refusal(_body(content=base64.b64encode(full + b"x").decode()))
    assert "send a uri instead" in error.message
    assert "send a uri instead" in _refusal(_body(content="!" * 10_000_000)).message


def test_a_message_that_names_two_tenants_is_refused() -> None:
    """Filters and archives trust the attribute, the handler the data: they must agree."""
    data = json.dumps(_body()).encode()
    with pytest.raises(PermanentError) as caught:
        decode(data, {"tenant_id": str(uuid4())})
    assert caught.value.reason == "tenant-mismatch"
    assert isinstance(decode(data, {"tenant_id": str(TENANT).upper()}), DocumentSubmitted)


@pytest.mark.parametrize(
    "traceparent",
    ["", "00-xyz", "\x00", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "00-" + "1" * 32 + "-" + "0" * 16 + "-01"],
)
def test_a_broken_trace_is_replaced_by_a_fresh_one(traceparent: str) -> None:
    """A trace is for finding things; a bad one must not lose a document."""
    message = decode(json.dumps(_body(traceparent=traceparent)).encode(), {})
    assert message.traceparent != traceparent
    assert len(message.trace_id) == 32
    assert int(message.trace_id, 16) > 0


def test_without_a_source_version_the_time_of_the_event_counts() -> None:
    """Upstream systems without versions still get last-writer-wins, in microseconds."""
    message = DocumentSubmitted(tenant_id=TENANT, external_id="1", uri="gs://b/o", occurred_at=NOON)
    assert message.version_number() == int(NOON.timestamp()) * 1_000_000
    before = datetime(1066, 10, 14, tzinfo=UTC)
    assert DocumentWithdrawn(tenant_id=TENANT, external_id="1", occurred_at=before).version_number() == 0
    assert DocumentWithdrawn(tenant_id=TENANT, external_id="1", source_version=7).version_number() == 7


def _submission(**fields: object) -> bytes:
    body = {"name": "document-submitted", "version": 1, "tenant_id": str(TENANT), "external_id": "a", "content": "eA=="}
    return json.dumps(body | fields).encode()


@pytest.mark.parametrize("published", ["2026-11-21T08:30:00.123Z", "2026-11-21T08:30:00.123456+00:00"])
def test_without_a_time_the_first_publish_counts_on_every_delivery(published: str) -> None:
    """A redelivery, hours later or out of the dead letters, is the same version and not a newer one."""
    told = {PUBLISHED: published}
    first, again = (decode(_submission(), told) for _ in range(2))
    assert isinstance(first, DocumentSubmitted)
    assert isinstance(again, DocumentSubmitted)
    assert first.version_number() == again.version_number()
    assert first.version_number() // 1000 == 1_795_249_800_123


def test_two_submissions_of_one_publish_request_are_two_versions() -> None:
    """Pub/Sub gives all messages of a request the same millisecond."""
    told = {PUBLISHED: "2026-11-21T08:30:00.123Z"}
    numbers = {
        message.version_number()
        for message in (decode(_submission(content=content), told) for content in ("eA==", "eQ==", "eg=="))
        if isinstance(message, DocumentSubmitted)
    }
    assert len(numbers) == 3


def test_a_time_of_its_own_goes_before_the_time_of_publishing() -> None:
    """Senders know better; a clock that is hours ahead is believed, too."""
    message = decode(_submission(occurred_at="2026-11-22T08:00:00Z"), {PUBLISHED: "2026-11-21T08:30:00Z"})
    assert message.occurred_at == datetime(2026, 11, 22, 8, tzinfo=UTC)


@pytest.mark.parametrize("occurred_at", ["2026-11-22T08:30:01Z", "9999-12-31T23:59:59Z"])
def test_a_time_far_in_the_future_is_refused(occurred_at: str) -> None:
    """It would beat every version that follows and every deletion."""
    with pytest.raises(PermanentError, match="more than a day after") as refusal:
        decode(_submission(occurred_at=occurred_at), {PUBLISHED: "2026-11-21T08:30:00Z"})
    assert refusal.value.reason == "malformed-message"


@pytest.mark.parametrize("occurred_at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"])
def test_a_time_that_does_not_exist_in_utc_is_refused(occurred_at: str) -> None:
    """Nothing could store it, so every delivery would fail."""
    with pytest.raises(PermanentError, match="occurred_at"):
        decode(_submission(occurred_at=occurred_at), {})


@pytest.mark.parametrize("published", ["", "yesterday", "2026-11-21T08:30:00", "0001-01-01T00:00:00+14:00"])
def test_an_unreadable_time_of_publishing_is_none(published: str) -> None:
    """Then the time of arrival counts."""
    assert abs(decode(_submission(), {PUBLISHED: published}).occurred_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_messages_cannot_be_changed_after_the_fact() -> None:
    """What was decoded is what was sent."""
    with pytest.raises(ValueError, match="frozen"):
        EXAMPLES[0].idempotency_key = "other"


def _decoded(data: bytes, attributes: dict[str, str]) -> Message | PermanentError:
    try:
        return decode(data, attributes)
    except PermanentError as error:
        return error


SECRET = "Zaunkönigsgeheimnis"

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([SECRET, f"{SECRET}\x00", f"{SECRET}\ud800", [SECRET], {SECRET: SECRET}]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
fields = st.sampled_from(sorted({field for kind in MESSAGES.values() for field in kind.model_fields} | {SECRET}))


@given(st.binary(max_size=200), st.dictionaries(st.text(max_size=10), st.text(max_size=10), max_size=3))
def test_any_bytes_are_a_message_or_a_refusal(data: bytes, attributes: dict[str, str]) -> None:
    """No input at all makes the door stumble."""
    outcome = _decoded(data, attributes)
    if isinstance(outcome, PermanentError):
        assert outcome.reason in {"malformed-message", "unknown-message", "tenant-mismatch"}


@settings(max_examples=400)
@given(st.sampled_from(EXAMPLES), st.dictionaries(fields, anything, max_size=4))
def test_any_field_values_are_a_message_or_a_refusal_that_quotes_none_of_them(
    example: Message, changed: dict[str, object]
) -> None:
    """Error texts end up in logs and archives: they name fields, never what stood in them."""
    body = json.loads(example.data()) | changed
    outcome = _decoded(json.dumps(body).encode(), {})
    if isinstance(outcome, PermanentError):
        assert SECRET not in f"{outcome} {outcome.message} {outcome.next_action} {outcome.reason}"
    else:
        # What was accepted can be passed on: postponing publishes the same message again.
        assert decode(outcome.data(), outcome.attributes()) == outcome
