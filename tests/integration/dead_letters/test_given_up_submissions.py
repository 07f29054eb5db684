"""A submission that is given up fails in sight, its source hears of it once, and it brings nothing back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from functions.maintenance.archiving import FAILURE, archive_exhausted
from shared.database import operator_session, tenant_session
from shared.documents.ending import fail_submission, withdraw
from shared.documents.intake import receive
from shared.documents.tombstones import entomb
from shared.events import DocumentSubmitted, DocumentWithdrawn
from shared.fakes import FakeBus
from shared.retrieval.indexes import owner_connection
from shared.tenants.directory import Principal
from tests.integration.dead_letters.letter_material import (
    document,
    exhausted,
    ingested,
    letters,
    only_letter,
    received,
    send_again,
    submission,
    told,
)


@contextmanager
def refusing_versions(tenant: Principal) -> Iterator[None]:
    """The database refuses every new version of a tenant, for a cause of its own."""
    condition = f"when (new.tenant_id = '{tenant.tenant_id}')"
    with owner_connection(os.environ["MIGRATION_DATABASE_URL"]) as owner:
        owner.exec_driver_sql(
            "create function rag.refuse() returns trigger language plpgsql as "
            "$$ begin raise exception 'never received'; end $$"
        )
        owner.exec_driver_sql(
            f"create trigger refuse before insert on rag.versions for each row {condition} "
            "execute function rag.refuse()"
        )
        try:
            yield
        finally:
            owner.exec_driver_sql("drop trigger refuse on rag.versions")
            owner.exec_driver_sql("drop function rag.refuse()")


def test_a_submission_that_was_never_received_fails_visibly_and_can_go_on(tenant: Principal, bus: FakeBus) -> None:
    """It never got as far as a row; people see it failed, upstream hears it once, and the replay brings it on."""
    event = submission(tenant)
    delivery = exhausted(event, "ingest-upstream")
    archive_exhausted(delivery)
    archive_exhausted(delivery)
    assert document(tenant) == ("failed", "attempts-exhausted", "failed")
    assert [told(row) for row in bus.published] == [("pumpe", 1, "attempts-exhausted")]
    send_again(only_letter().letter_id)
    assert document(tenant) == ("received", None, "received")
    assert not received(tenant, event).stored


def test_a_crash_before_the_letter_tells_upstream_once(tenant: Principal, bus: FakeBus) -> None:
    """The document has failed, the letter is not there yet: the repeat writes the letter and tells nobody again."""
    event = submission(tenant)
    with tenant_session(tenant.tenant_id) as session:
        fail_submission(session, event, "upstream", FAILURE)
    archive_exhausted(exhausted(event, "ingest-upstream"))
    assert [told(row) for row in bus.published] == [("pumpe", 1, "attempts-exhausted")]
    assert only_letter().reason == "attempts-exhausted"


def test_what_cannot_even_be_received_is_told_to_its_source_once(tenant: Principal, bus: FakeBus) -> None:
    """The database refuses every row of it, the archive's as well: the event goes out with the letter, or not at all.

    A searchable document of the same name goes on answering.
    """
    ingested(tenant, submission(tenant))
    bus.published.clear()
    event = submission(tenant, version=2)
    with refusing_versions(tenant):
        with pytest.raises(DBAPIError, match="never received"):
            received(tenant, event)
        delivery = exhausted(event, "ingest-upstream")
        archive_exhausted(delivery)
        archive_exhausted(delivery)
    assert [told(row) for row in bus.published] == [("pumpe", 2, "attempts-exhausted")]
    assert (only_letter()[5], only_letter().attempts) == ("transient", 5)
    assert document(tenant) == ("ingested", None, "ingested")
    assert send_again(only_letter().letter_id).done
    assert not received(tenant, event).stored


@pytest.mark.parametrize("gone", ["withdrawn", "purged", "overtaken"])
def test_a_dead_letter_brings_nothing_back(gone: str, tenant: Principal, bus: FakeBus) -> None:
    """What was withdrawn, deleted for good or overtaken while its message was tried is not received to be failed."""
    event = submission(tenant)
    with tenant_session(tenant.tenant_id) as session:
        if gone == "withdrawn":
            withdraw(session, DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="pumpe"), "upstream")
        elif gone == "overtaken":
            receive(session, submission(tenant, version=2), "upstream")
    if gone == "purged":
        with operator_session() as operator:
            entomb(operator, tenant.tenant_id, "upstream", "pumpe", 1, datetime.now(UTC))
    bus.published.clear()
    archive_exhausted(exhausted(event, "ingest-upstream"))
    assert bus.published == []
    with tenant_session(tenant.tenant_id) as session:
        versions = "select source_version from rag.versions where tenant_id = :t"
        assert session.execute(text(versions), {"t": tenant.tenant_id}).scalars().all() == [2] * (gone == "overtaken")
    assert only_letter().name == "document-submitted"


@pytest.mark.parametrize("known", [True, False])
def test_nobody_learns_by_a_dead_letter_which_tenants_exist(
    known: bool, tenant: Principal, make_tenant: Callable[..., Principal], bus: FakeBus
) -> None:
    """A tenant that is not bound to the source and one that does not exist: the same letter, and no event."""
    tenant_id = make_tenant().tenant_id if known else uuid4()
    with operator_session() as session:
        session.execute(text("delete from core.sources where tenant_id = :t"), {"t": tenant_id})
    event = DocumentSubmitted(tenant_id=tenant_id, external_id="pumpe", source_version=1, content="UHVtcGU=")
    unreadable = event.data().replace(b"UHVtcGU=", b"not base64")
    archive_exhausted(exhausted(event, "ingest-upstream"))
    archive_exhausted(replace(exhausted(event, "ingest-upstream"), data=unreadable))
    assert bus.published == []
    assert [letter.tenant_id for letter in letters()] == [tenant_id] * 2


def test_an_unreadable_submission_that_came_by_the_dead_letters_is_told_as_well(
    tenant: Principal, bus: FakeBus
) -> None:
    """Ingest was away for five deliveries: what it would have said about the message, the archive says."""
    event = submission(tenant)
    delivery = replace(exhausted(event, "ingest-upstream"), data=event.data().replace(b"UHVtcGU=", b"not base64"))
    archive_exhausted(delivery)
    archive_exhausted(delivery)
    assert [told(row) for row in bus.published] == [("pumpe", 1, "malformed-message")]
    assert only_letter()[5] == "poison"
