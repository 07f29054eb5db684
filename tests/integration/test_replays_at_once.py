"""Two people replay the same dead letter at the same moment: it goes once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from shared.database import operator_session, platform_session
from shared.dead_letters.archive import DeadLetter, archive, letter_id_of
from shared.dead_letters.replay import Outcome, replay
from shared.fakes import FakeBus
from shared.tenants.directory import Principal
from tests.conftest import Database
from tests.integration.lifecycle_material import submission, until_somebody_waits


def archived(tenant: Principal) -> UUID:
    """A submission that failed on every delivery."""
    event = submission(tenant, 1)
    letter = DeadLetter(
        "ingest-upstream", str(event.event_id), event.data(), event.attributes(), "transient", "exhausted", "Down."
    )
    with platform_session() as session:
        archive(session, [letter])
    return letter_id_of(letter)


def test_of_two_replays_at_once_the_second_finds_the_firsts_work_done(
    tenant: Principal, database: Database, bus: FakeBus
) -> None:
    """It waits for the first, says that the letter has been replayed, and neither counts nor records another."""
    letter_id = archived(tenant)

    def by_another() -> Outcome:
        with operator_session() as session:
            return replay(session, letter_id, actor="operator:two")

    # A connection of its own: the pool of operators has two, for who waits and for who looks.
    engine = create_engine(database.operator_url, poolclass=NullPool)
    with ThreadPoolExecutor(1) as other:
        with Session(engine) as session, session.begin():
            assert replay(session, letter_id, actor="operator:one").done
            second = other.submit(by_another)
            until_somebody_waits(operator_session)
        assert second.result(timeout=20).done is False
    with operator_session() as session:
        counted = session.execute(
            text("select replays from core.dead_letters where letter_id = :id"), {"id": letter_id}
        ).scalar()
        recorded = session.execute(
            text("select count(*) from core.audit where subject = :id and action = 'dead-letter-replayed'"),
            {"id": str(letter_id)},
        ).scalar()
    assert (counted, recorded) == (1, 1)
