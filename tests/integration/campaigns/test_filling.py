"""Another vector space is filled while the old one answers, each vector paid once, whatever gets lost."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import text

from functions.embed.embedding import embed_chunks
from shared.database import operator_session, tenant_session
from shared.documents.completion import finish_version
from shared.fakes import FakeClock
from shared.retrieval import filling, mending
from shared.retrieval.spaces import Space
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.campaign_material import (
    Pump,
    add,
    answering,
    begin,
    fill,
    found,
    job,
    new_space,
    paid,
    state,
    switch,
    vectors,
)


def test_a_campaign_fills_the_new_space_and_pays_each_chunk_once(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services
) -> None:
    """Every chunk gets its vector from the stored text, in bounded batches; nothing twice; then it is ready."""
    assert begin(tenant, target, slots=2) == 2
    most = 0
    while pump.step():
        most = max(most, len(pump.waiting()))
    assert most <= 2
    assert sorted(paid(working)) == sorted(corpus)
    assert vectors(tenant, target) == 30
    job(working)
    assert state(tenant).state == "ready"
    assert answering(tenant).space_id != target.space_id


def test_documents_and_questions_go_on_while_a_space_is_filled(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services
) -> None:
    """A document that comes meanwhile is searchable with vectors in both spaces; questions are answered by the old."""
    begin(tenant, target, slots=1)
    pump.step()
    old = answering(tenant)
    add(tenant, "new", ["an entirely fresh matter", "and a second one"])
    assert found(tenant, old, "paragraph 3 about topic 3", working)
    pump.run()
    assert "an entirely fresh matter" in found(tenant, old, "an entirely fresh matter", working)
    job(working)
    assert vectors(tenant, target) == vectors(tenant, old) == 32
    assert paid(working).count("an entirely fresh matter") == 2 + 1  # two spaces, and the question


def test_unchanged_chunks_of_a_new_version_keep_their_vectors_in_both_spaces(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services, clock: FakeClock
) -> None:
    """Reuse works for every live space: only the changed chunk is paid, once a space."""
    fill(tenant, target, pump, working)
    switch(tenant, clock)
    paid(working).clear()
    add(tenant, "doc-0", [*corpus[:9], "the changed one"], version=2)
    pump.run()
    assert paid(working) == ["the changed one"] * 2


def test_a_version_stored_before_the_start_gets_vectors_in_both_spaces(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str]
) -> None:
    """What was being ingested when the campaign began waits for the new space too and is commanded for it."""
    pending = add(tenant, "pending", ["stored before", "the campaign"])
    first = pump.waiting()
    begin(tenant, target, slots=1)
    for command in first:
        embed_chunks(command, pump.services)
    with tenant_session(tenant.tenant_id) as session:
        assert not finish_version(session, tenant.tenant_id, pending.version_id)
    pump.run()
    with operator_session() as operator:
        found_state = operator.execute(
            text("select state from rag.versions where version_id = :v"), {"v": pending.version_id}
        ).scalar_one()
    assert found_state == "searchable"


def test_earlier_versions_are_carried_over_unless_told_otherwise(
    make_tenant: Callable[..., Principal], pump: Pump, working: Services
) -> None:
    """Search as of a time and rollback of a document need their vectors; `history` False saves the money."""
    for history, expected in ((True, 3), (False, 2)):
        tenant, target = make_tenant(), new_space()
        add(tenant, "doc", ["kept", "replaced"])
        pump.run()
        add(tenant, "doc", ["kept", "its successor"], version=2)
        pump.run()
        begin(tenant, target, history=history)
        paid(working).clear()
        pump.run()
        job(working)
        assert len(set(paid(working))) == expected
        assert state(tenant).state == "ready"


def test_a_killed_worker_pays_no_vector_twice(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services
) -> None:
    """Redeliveries at every point, also after the vectors were stored and before the next batch was sent."""
    begin(tenant, target, slots=2)
    for _ in range(100):
        waiting = pump.waiting()
        if not waiting:
            break
        embed_chunks(waiting[0], working)  # handled, and the acknowledgement lost
        pump.step()
        embed_chunks(waiting[0], working)
    assert sorted(paid(working)) == sorted(corpus)
    job(working)
    assert state(tenant).state == "ready"


def test_lost_messages_are_sent_again(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services
) -> None:
    """A batch without a word for longer than any delivery takes is commanded anew; the campaign comes to its end."""
    begin(tenant, target, slots=2)
    pump.place = len(pump.bus.published)  # both batches are lost
    job(working)
    assert pump.waiting() == []
    _age(tenant, minutes=16)
    job(working)
    assert len(pump.waiting()) == 2
    pump.run()
    job(working)
    assert state(tenant).state == "ready"
    assert sorted(paid(working)) == sorted(corpus)


def test_a_batch_that_never_comes_back_ends_as_failed_chunks(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services
) -> None:
    """After five times its chunks are recorded with a reason, and the rest is filled."""
    begin(tenant, target, slots=1)
    lost = pump.waiting()[0]
    for _ in range(filling.MOST_ATTEMPTS):
        pump.place = len(pump.bus.published)
        _age(tenant, minutes=16)
        job(working)
    pump.run()
    job(working)
    with operator_session() as operator:
        refused = mending.failures(operator, tenant.tenant_id, target.space_id)
    assert {row.chunk_id for row in refused} == set(lost.chunk_ids)
    assert {row.reason for row in refused} == {"attempts-exhausted"}
    assert state(tenant).state == "ready"


def _age(tenant: Principal, minutes: int) -> None:
    with operator_session() as operator:
        operator.execute(
            text("update rag.campaign_batches set sent_at = sent_at - make_interval(mins => :m) where tenant_id = :t"),
            {"m": minutes, "t": tenant.tenant_id},
        )
