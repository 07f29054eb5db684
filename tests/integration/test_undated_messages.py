"""A message that says neither version nor time is as old as its first publishing, however late it is handled."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import text

from shared.database import operator_session, platform_session, tenant_session
from shared.dead_letters.archive import DeadLetter, archive, letter_id_of
from shared.dead_letters.replay import replay
from shared.documents.acting import as_curator
from shared.documents.deletion import delete_document
from shared.documents.intake import receive
from shared.errors import Superseded
from shared.events import PUBLISHED, DocumentSubmitted, decode
from shared.fakes import FakeBus
from shared.tenants.directory import Principal
from tests.integration.lifecycle_material import document_id, look


def undated(tenant: Principal, content: str) -> bytes:
    """What a system publishes that sets nothing but what it must, as the README shows it."""
    body = {"name": "document-submitted", "version": 1, "tenant_id": str(tenant.tenant_id), "external_id": "doc"}
    return json.dumps(body | {"content": content}).encode()


def published(data: bytes, at: datetime) -> DocumentSubmitted:
    """The message as a door reads it, whenever it is delivered."""
    message = decode(data, {PUBLISHED: at.isoformat()})
    assert isinstance(message, DocumentSubmitted)
    return message


def accept(tenant: Principal, message: DocumentSubmitted) -> None:
    """Ingest begins with it. Raises Superseded."""
    with tenant_session(tenant.tenant_id) as session:
        receive(session, message, "upstream")


def out_of_the_dead_letters(tenant: Principal, bus: FakeBus, data: bytes, at: datetime) -> DocumentSubmitted:
    """The message after it lay in the archive and was replayed now."""
    letter = DeadLetter("ingest-upstream", uuid4().hex, data, {PUBLISHED: at.isoformat()}, "transient", "x", "x")
    with platform_session() as session:
        archive(session, [letter])
    with operator_session() as operator:
        assert replay(operator, letter_id_of(letter), actor="operator:test").done
    sent = next(m for m in reversed(bus.published) if m.tenant_id == tenant.tenant_id)
    message = decode(sent.data.encode(), sent.attributes | {PUBLISHED: datetime.now(UTC).isoformat()})
    assert isinstance(message, DocumentSubmitted)
    return message


def test_a_redelivery_is_the_same_version(tenant: Principal, bus: FakeBus) -> None:
    """A worker died in the middle: its successor goes on with the version instead of making another."""
    at = datetime.now(UTC) - timedelta(minutes=5)
    for _ in range(3):
        accept(tenant, published(undated(tenant, "eA=="), at))
    with tenant_session(tenant.tenant_id) as session:
        assert session.execute(text("select count(*) from rag.versions")).scalar() == 1


def test_a_replay_does_not_replace_what_was_published_after_it(tenant: Principal, bus: FakeBus) -> None:
    """Old content stays old."""
    at = datetime.now(UTC) - timedelta(minutes=5)
    accept(tenant, published(undated(tenant, "bmV3"), at + timedelta(seconds=1)))
    old = out_of_the_dead_letters(tenant, bus, undated(tenant, "b2xk"), at)
    with pytest.raises(Superseded):
        accept(tenant, old)


def test_a_replay_does_not_bring_a_deleted_document_back(tenant: Principal, bus: FakeBus) -> None:
    """It was sent before the deletion, whatever the clock says when it is read."""
    at = datetime.now(UTC) - timedelta(minutes=5)
    accept(tenant, published(undated(tenant, "eA=="), at - timedelta(minutes=1)))
    with tenant_session(tenant.tenant_id) as session:
        delete_document(session, as_curator(tenant), document_id(tenant))
    late = out_of_the_dead_letters(tenant, bus, undated(tenant, "eQ=="), at)
    with pytest.raises(Superseded):
        accept(tenant, late)
    assert look(tenant).state == "deleted"
