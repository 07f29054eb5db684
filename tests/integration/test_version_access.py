"""Each version's text is for those its own access list names: narrower at once, wider with the text it came with."""

from __future__ import annotations

from datetime import datetime
from uuid import uuid4

import pytest
from sqlalchemy import text

from shared.database import operator_session, tenant_session
from shared.documents.access import NOBODY, AccessList
from shared.documents.acting import as_operator
from shared.documents.ending import fail_version
from shared.documents.history import roll_back
from shared.documents.intake import Reception, receive
from shared.documents.reading import list_documents, read_chunk
from shared.errors import PermanentError
from shared.events import Access
from shared.fakes import FakeBus
from shared.retrieval.questions import Filters
from shared.retrieval.search import search
from shared.retrieval.spaces import active_space
from shared.services import Services
from shared.tenants.directory import Principal, add_member, add_to_group, memberships
from tests.integration.lifecycle_material import embed_all, submission, take

SECRET, REDACTED = "The salary of the director is 9000 EUR.", "The salary of the director is not told here."
HR, EVERYBODY = Access(groups=("hr",)), Access()


@pytest.fixture
def insider(tenant: Principal) -> Principal:
    """A member of the group hr."""
    return _member(tenant, "hr")


@pytest.fixture
def outsider(tenant: Principal) -> Principal:
    """A member of another group."""
    return _member(tenant, "sales")


def _member(tenant: Principal, group: str) -> Principal:
    email = f"{group}@{uuid4().hex}.example"
    with operator_session() as session:
        member = add_member(session, tenant.tenant_id, email, name=group)
        add_to_group(session, tenant.tenant_id, group, member)
    return memberships(email)[0]


def bring(services: Services, bus: FakeBus, tenant: Principal, number: int, words: str, access: Access) -> Reception:
    """A version that was ingested and embedded."""
    reception = take(tenant, submission(tenant, number).model_copy(update={"access": access}), words)
    embed_all(services, bus)
    return reception


def announce(tenant: Principal, number: int, access: Access) -> Reception:
    """A version of which nothing but its submission is there."""
    with tenant_session(tenant.tenant_id) as session:
        return receive(session, submission(tenant, number).model_copy(update={"access": access}), "upstream")


def seen(services: Services, member: Principal, *, as_of: datetime | None = None) -> set[str]:
    """The texts a member finds."""
    with tenant_session(member.tenant_id) as session:
        space = active_space(session, member.tenant_id)
        question = "salary of the director"
        vector = services.models.embed([question], model=space.model, dimension=space.dimension, input_type="query")[0]
        found = search(
            session, member.tenant_id, member.member_id, space, question, vector, filters=Filters(as_of=as_of)
        )
    return {passage.text for passage in found}


def test_a_wider_access_waits_for_the_text_it_came_with(
    tenant: Principal, insider: Principal, outsider: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """A redacted version for everybody does not open the old text, neither while it is on its way nor afterwards."""
    bring(fake_services, bus, tenant, 1, SECRET, HR)
    announce(tenant, 2, EVERYBODY)
    assert (seen(fake_services, insider), seen(fake_services, outsider)) == ({SECRET}, set())
    bring(fake_services, bus, tenant, 2, REDACTED, EVERYBODY)
    assert (seen(fake_services, insider), seen(fake_services, outsider)) == ({REDACTED}, {REDACTED})


def test_a_wider_access_of_a_version_that_fails_opens_nothing(
    tenant: Principal, insider: Principal, outsider: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """The old text goes on answering, to whom it did."""
    bring(fake_services, bus, tenant, 1, SECRET, HR)
    failed = announce(tenant, 2, EVERYBODY)
    with tenant_session(tenant.tenant_id) as session:
        fail_version(
            session, tenant.tenant_id, failed.version_id, PermanentError("corrupt", "It is broken.", "Mend it.")
        )
    assert (seen(fake_services, insider), seen(fake_services, outsider)) == ({SECRET}, set())
    with tenant_session(tenant.tenant_id) as session:
        assert list_documents(session, outsider) == []


def test_a_narrower_access_does_not_wait(
    tenant: Principal, insider: Principal, outsider: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """From the submission on, also when it fails later: that it could not be read takes nothing back."""
    bring(fake_services, bus, tenant, 1, SECRET, EVERYBODY)
    narrower = announce(tenant, 2, HR)
    assert (seen(fake_services, insider), seen(fake_services, outsider)) == ({SECRET}, set())
    with tenant_session(tenant.tenant_id) as session:
        error = PermanentError("corrupt", "It is broken.", "Mend it.")
        fail_version(session, tenant.tenant_id, narrower.version_id, error)
    assert (seen(fake_services, insider), seen(fake_services, outsider)) == ({SECRET}, set())


def test_the_same_text_for_others_is_theirs_at_once(
    tenant: Principal, insider: Principal, outsider: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """An unchanged version changes who may see the text, in both directions, whatever failed before."""
    bring(fake_services, bus, tenant, 1, SECRET, HR)
    announce(tenant, 2, Access(groups=("board",)))
    assert (seen(fake_services, insider), seen(fake_services, outsider)) == (set(), set())
    bring(fake_services, bus, tenant, 3, SECRET, EVERYBODY)
    assert (seen(fake_services, insider), seen(fake_services, outsider)) == ({SECRET}, {SECRET})
    bring(fake_services, bus, tenant, 4, SECRET, HR)
    assert (seen(fake_services, insider), seen(fake_services, outsider)) == ({SECRET}, set())


def test_going_back_to_an_older_text_goes_back_to_its_readers(
    tenant: Principal, insider: Principal, outsider: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """A rollback from a public version to a confidential one opens the confidential text to nobody."""
    first = bring(fake_services, bus, tenant, 1, SECRET, HR)
    second = bring(fake_services, bus, tenant, 2, REDACTED, EVERYBODY)
    operator = as_operator(tenant.tenant_id, "ops")
    with tenant_session(tenant.tenant_id) as session:
        roll_back(session, operator, first.document_id, first.version_id)
    assert (seen(fake_services, insider), seen(fake_services, outsider)) == ({SECRET}, set())
    with tenant_session(tenant.tenant_id) as session:
        roll_back(session, operator, first.document_id, second.version_id)
    assert (seen(fake_services, insider), seen(fake_services, outsider)) == ({REDACTED}, {REDACTED})


def test_what_answered_before_is_read_by_its_readers_only(
    tenant: Principal, insider: Principal, outsider: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Search as of a time and the passage behind an old citation keep to the list of the text they show."""
    first = bring(fake_services, bus, tenant, 1, SECRET, HR)
    with operator_session() as session:
        then = session.execute(text("select clock_timestamp()")).scalar_one()
    bring(fake_services, bus, tenant, 2, REDACTED, EVERYBODY)
    assert (seen(fake_services, insider, as_of=then), seen(fake_services, outsider, as_of=then)) == ({SECRET}, set())
    with tenant_session(tenant.tenant_id) as session:
        chunk = session.execute(
            text("select chunk_id from rag.chunks where tenant_id = :t and version_id = :v"),
            {"t": tenant.tenant_id, "v": first.version_id},
        ).scalar_one()
        assert read_chunk(session, insider, chunk) is not None
        assert read_chunk(session, outsider, chunk) is None


def test_a_late_first_version_stays_closed_beside_a_wider_second(
    tenant: Principal, insider: Principal, outsider: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Both were submitted before either answered; the first to be complete is the one for few."""
    take(tenant, submission(tenant, 1).model_copy(update={"access": HR}), SECRET)
    announce(tenant, 2, EVERYBODY)
    embed_all(fake_services, bus)
    assert (seen(fake_services, insider), seen(fake_services, outsider)) == ({SECRET}, set())


def test_lists_with_nobody_in_common_leave_nobody() -> None:
    """An empty list would mean everybody."""
    few, others = AccessList.of(["A@x.example"], ["hr"]), AccessList.of(["b@x.example"], ["board"])
    assert few.narrowed(others) == AccessList.of([], [NOBODY])
    assert few.narrowed(AccessList()) == few == AccessList().narrowed(few)
    assert few.narrowed(AccessList.of(["a@x.example"], [])) == AccessList.of(["a@x.example"], [])
    assert few.narrowed(others).narrowed(few) == AccessList.of([], [NOBODY])
