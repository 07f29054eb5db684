"""The switch to a filled space, the way back and the end of the old one lose nothing."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
from sqlalchemy import text

from functions.embed.embedding import embed_chunks
from shared.database import operator_session, tenant_session
from shared.documents.completion import finish_version
from shared.errors import PermanentError
from shared.fakes import FakeClock
from shared.retrieval import switching
from shared.retrieval.spaces import Space, change_spaces, hold_spaces
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.campaign_material import (
    ACTOR,
    Pump,
    add,
    answering,
    fill,
    found,
    job,
    paid,
    spaces,
    state,
    switch,
    vectors,
)


def test_switch_and_rollback_are_at_once_and_lose_nothing(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services, clock: FakeClock
) -> None:
    """New versions get vectors in both until the grace period ends, so the way back finds them too."""
    old = answering(tenant)
    fill(tenant, target, pump, working)
    switch(tenant, clock)
    assert answering(tenant) == target
    add(tenant, "after", ["came after the switch"])
    pump.run()
    assert "came after the switch" in found(tenant, target, "came after the switch", working)
    # A run that read the old space before the switch ends in it.
    assert "paragraph 3 about topic 3" in found(tenant, old, "paragraph 3 about topic 3", working)
    with operator_session() as operator:
        switching.rollback(operator, tenant.tenant_id, now=clock.now(), actor=ACTOR)
    assert answering(tenant) == old
    assert "came after the switch" in found(tenant, old, "came after the switch", working)
    assert state(tenant).state == "rolled-back"
    job(working)
    assert vectors(tenant, target) == 31
    paid(working).clear()
    fill(tenant, target, pump, working)
    assert paid(working) == []  # what a campaign paid, the next one has


def test_the_old_space_goes_when_the_grace_period_is_over(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services, clock: FakeClock
) -> None:
    """Vectors, index and row; afterwards there is no way back but a campaign; who still reads it finds nothing."""
    old = answering(tenant)
    fill(tenant, target, pump, working)
    switch(tenant, clock, grace=timedelta(hours=1))
    clock.advance(timedelta(minutes=59))
    job(working)
    assert spaces(tenant) == {old.space_id: "filling", target.space_id: "active"}
    clock.advance(timedelta(minutes=2))
    with operator_session() as operator, pytest.raises(PermanentError, match="grace"):
        switching.rollback(operator, tenant.tenant_id, now=clock.now(), actor=ACTOR)
    counts = job(working)
    assert counts["completed"] >= 1
    assert counts["dropped_vectors"] >= 30
    assert counts["dropped_spaces"] >= 1
    assert spaces(tenant) == {target.space_id: "active"}
    assert (state(tenant).state, vectors(tenant, old), vectors(tenant, target)) == ("completed", 0, 30)
    dropped = state(tenant).dropped_at
    job(working)
    assert dropped is not None
    assert state(tenant).dropped_at == dropped


def test_the_switch_finds_no_version_between_two_truths(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services, clock: FakeClock
) -> None:
    """Two connections: whoever completes a version holds the spaces; the switch waits, and sees what was committed."""
    fill(tenant, target, pump, working)
    refused: list[str] = []

    def other() -> None:
        try:
            switch(tenant, clock)
        except PermanentError as error:
            refused.append(error.reason)

    thread = threading.Thread(target=other)
    with tenant_session(tenant.tenant_id) as session:
        hold_spaces(session, tenant.tenant_id)
        thread.start()
        _somebody_waits()
        # What a version that was completed for the old space alone would leave behind.
        session.execute(
            text(
                "delete from rag.embeddings where tenant_id = :t and space_id = :s "
                "and chunk_id = (select chunk_id from rag.chunks where tenant_id = :t order by chunk_id limit 1)"
            ),
            {"t": tenant.tenant_id, "s": target.space_id},
        )
    thread.join(20)
    assert refused == ["campaign-not-ready"]
    job(working)  # it is not ready any more
    assert state(tenant).state == "filling"
    job(working)
    pump.run()
    job(working)
    switch(tenant, clock)
    assert answering(tenant) == target


def test_a_version_completed_during_a_switch_has_vectors_in_both_spaces(
    tenant: Principal, target: Space, pump: Pump, corpus: list[str], working: Services, clock: FakeClock
) -> None:
    """The other way round: completion waits until the switch has committed and then asks for what is live now."""
    fill(tenant, target, pump, working)
    pending = add(tenant, "pending", ["completed during the switch"])
    for command in pump.waiting():
        if command.version_id == pending.version_id and command.space_id == target.space_id:
            embed_chunks(command, working)
    finished: list[bool] = []

    def other() -> None:
        with tenant_session(tenant.tenant_id) as session:
            finished.append(finish_version(session, tenant.tenant_id, pending.version_id))

    thread = threading.Thread(target=other)
    with operator_session() as operator:
        change_spaces(operator, tenant.tenant_id)
        thread.start()
        _somebody_waits()
        operator.execute(
            text("update rag.tenant_spaces set state = 'paused' where tenant_id = :t and state = 'active'"),
            {"t": tenant.tenant_id},
        )
    thread.join(20)
    assert finished == [True]  # the space it lacked a vector in is live no longer, and it saw that


def _somebody_waits() -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with operator_session() as operator:
            waiting = operator.execute(
                text("select count(*) from pg_locks where locktype = 'advisory' and not granted")
            ).scalar_one()
        if waiting:
            return
        time.sleep(0.02)
    raise AssertionError("nobody waits for the lock")
