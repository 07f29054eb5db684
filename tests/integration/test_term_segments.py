"""Statistics counted in segments: always those of a count from the beginning, whoever is stopped, whatever goes on."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from functions.maintenance.jobs import index_care
from shared.database import copy_rows, operator_session, tenant_session
from shared.documents.acting import Actor
from shared.documents.hard_deletion import purge_documents
from shared.errors import Superseded
from shared.fakes import FakeBus
from shared.jobs import leases
from shared.jobs.leases import Lease, Progress
from shared.retrieval import segments, statistics
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.search_material import index
from tests.integration.test_search_indexes import CHUNKS_OF, DOCUMENTS, VERSIONS

RARE, SEGMENT = 4, 8
WORDS = [f"wort{'abcdefghijklmnopqrst'[n]}" for n in range(20)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, bus: FakeBus) -> None:
    """Segments of a few chunks, pieces of a few words, and words that are common soon."""
    monkeypatch.setattr(segments, "CHUNKS", SEGMENT)
    monkeypatch.setattr(statistics, "RARE", RARE)
    monkeypatch.setattr(statistics, "SMALL", 10)
    monkeypatch.setattr(statistics, "WORDS", 7)
    monkeypatch.setattr(statistics, "ENTRIES_SUMMED", 50)
    monkeypatch.setattr(statistics, "ENTRIES_READ", 90)


def write(tenant: Principal, numbers: range, dice: random.Random, *, version: int = 1) -> None:
    """Documents of one to four chunks, each of some words; the more often, the earlier in WORDS."""
    tenant_id = tenant.tenant_id
    documents: list[tuple[object, ...]] = []
    versions: list[tuple[object, ...]] = []
    chunks: list[tuple[object, ...]] = []
    collection = uuid5(tenant_id, "collection:default")
    for number in numbers:
        document = uuid5(tenant_id, f"d{number}")
        made = uuid5(document, f"version:{version}")
        documents.append((tenant_id, document, collection, "upstream", str(number), str(number), "searchable"))
        size = dice.randrange(1, 5)
        versions.append((tenant_id, made, document, version, "searchable", "", "", 0, "", "", size, ""))
        for ordinal in range(size):
            words = " ".join(WORDS[int(dice.random() ** 2 * 20)] for _ in range(dice.randrange(1, 9)))
            place = (tenant_id, uuid5(made, str(ordinal)), made, document, ordinal)
            chunks.append((*place, words, "", 0, 9, 3, "de", [], {}))
    with tenant_session(tenant_id) as session:
        session.execute(
            text("insert into rag.collections values (:t, :id, 'default') on conflict do nothing"),
            {"t": tenant_id, "id": collection},
        )
        if version == 1:
            copy_rows(session, "rag.documents", DOCUMENTS, documents)
        copy_rows(session, "rag.versions", VERSIONS, versions)
        copy_rows(session, "rag.chunks", CHUNKS_OF, chunks)


def delete(tenant: Principal, condition: str) -> None:
    """Delete chunks, as the purge of old content does."""
    with operator_session() as session:
        session.execute(text(f"delete from rag.chunks where tenant_id = :t and ({condition})"), {"t": tenant.tenant_id})


def wait_until(condition: Callable[[], bool]) -> None:
    """Until it holds, for a minute at most."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


State = tuple[dict[int, int], tuple[int, float] | None]


def given_out(tenant: Principal) -> State:
    """What a search of the tenant reads."""
    with tenant_session(tenant.tenant_id) as session:
        return _given_out(session, tenant.tenant_id)


def _given_out(session: Session, tenant_id: UUID) -> State:
    common = session.execute(
        text("select term, chunks from rag.term_statistics where tenant_id = :t"), {"t": tenant_id}
    )
    size = session.execute(
        text("select chunks, average_length from rag.corpus_statistics where tenant_id = :t"), {"t": tenant_id}
    ).first()
    return {row.term: row.chunks for row in common}, tuple(size) if size else None


def from_the_beginning(tenant: Principal) -> State:
    """The same, counted in one statement over all chunks, as every release before did."""
    with operator_session() as session:
        common = session.execute(
            text(
                "select t.term, count(*) as chunks from rag.chunk_terms c cross join lateral unnest(c.terms) t(term) "
                "where c.tenant_id = :t group by t.term having count(*) >= :rare"
            ),
            {"t": tenant.tenant_id, "rare": RARE},
        ).all()
        size = session.execute(
            text(
                "select count(*), cast(coalesce(avg(length), 0) as double precision) from rag.chunk_terms "
                "where tenant_id = :t"
            ),
            {"t": tenant.tenant_id},
        ).one()
    return {row.term: row.chunks for row in common}, (size[0], size[1])


def outdated(tenant: Principal) -> segments.Look:
    with operator_session() as session:
        return segments.look(session, tenant.tenant_id)


@contextmanager
def held(tenant: Principal) -> Iterator[None]:
    """Nobody counts for the tenant meanwhile."""
    with operator_session() as session:
        segments.lock(session, tenant.tenant_id)
        yield


@pytest.mark.parametrize("seed", range(6))
def test_what_is_counted_piece_by_piece_is_what_is_counted_from_the_beginning(tenant: Principal, seed: int) -> None:
    """Documents come and go, get versions, lose them; the corpus grows into more segments and shrinks into fewer: after
    every refresh numbers, mean length and words are those of the whole corpus, and nothing is left to count."""
    dice, documents = random.Random(seed), 0
    cuts = set[int]()
    for step in range(12):
        act = dice.choice(("write", "write", "version", "drop", "nothing", "shrink"))
        if act == "write" or documents == 0:
            more = dice.randrange(1, 40)
            write(tenant, range(documents, documents + more), dice)
            documents += more
        elif act == "version":
            write(tenant, range(0, documents, dice.randrange(2, 9)), dice, version=2 + step)
        elif act == "drop":
            delete(tenant, f"random() < {dice.random() / 2}")
        elif act == "shrink":
            delete(tenant, f"version_id > '{UUID(int=dice.getrandbits(128))}'")
        for _ in statistics.refreshing(tenant.tenant_id):
            pass
        for _ in statistics.forgetting(tenant.tenant_id):
            pass
        look = outdated(tenant)
        cuts.add(look.bits)
        assert given_out(tenant) == from_the_beginning(tenant), (step, act)
        assert look.outdated == ()
        assert words_without_chunk(tenant) == 0
    assert len(cuts) > 1, "the corpus was never cut otherwise"


def words_without_chunk(tenant: Principal) -> int:
    with operator_session() as session:
        number: int = session.execute(
            text(
                "select count(*) from rag.vocabulary v where v.tenant_id = :t and not exists (select from "
                "rag.chunk_terms c where c.tenant_id = :t and rag.term(:t, 1, v.language, v.stem) = any(c.terms))"
            ),
            {"t": tenant.tenant_id},
        ).scalar_one()
    return number


def test_only_what_changed_is_counted_again(tenant: Principal) -> None:
    """A document more is a segment more to count, not a corpus."""
    write(tenant, range(120), random.Random(1))
    with operator_session() as session:
        statistics.refresh(session, tenant.tenant_id)
    assert outdated(tenant).bits == 6
    write(tenant, range(120, 121), random.Random(2))
    assert len(outdated(tenant).outdated) == 1
    steps = list(statistics.refreshing(tenant.tenant_id))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert given_out(tenant) == from_the_beginning(tenant)


def test_whoever_is_stopped_has_counted_for_the_next_one(tenant: Principal) -> None:
    """Stopped after every step once: searches go by the old numbers until the new ones are whole, and every segment is
    counted once."""
    write(tenant, range(40), random.Random(1))
    with operator_session() as session:
        statistics.refresh(session, tenant.tenant_id)
    before = given_out(tenant)
    write(tenant, range(40, 60), random.Random(2))
    to_count, turns = len(outdated(tenant).outdated), 0
    assert to_count > 3
    while outdated(tenant).outdated:
        assert given_out(tenant) == before
        turn = statistics.refreshing(tenant.tenant_id)
        assert [next(turn)[0], next(turn)[0]] == [1, 2]
        turn.close()
        turns += 1
    assert turns == to_count
    assert given_out(tenant) == before
    assert list(statistics.refreshing(tenant.tenant_id))[-1] == (2, 2)
    assert given_out(tenant) == from_the_beginning(tenant) != before


KILLED = """
import sys
from uuid import UUID
from shared.retrieval import segments, statistics
segments.CHUNKS, statistics.RARE = 8, 4
for done, total in statistics.refreshing(UUID(sys.argv[1])):
    print(done, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("steps", [1, 3, 10_000], ids=["at once", "among segments", "giving out"])
def test_a_process_that_is_killed_leaves_the_old_numbers(tenant: Principal, steps: int) -> None:
    """SIGKILL while it counts or gives out: what it had not committed is gone, the next one ends with the right sum."""
    write(tenant, range(40), random.Random(1))
    with operator_session() as session:
        statistics.refresh(session, tenant.tenant_id)
    before = given_out(tenant)
    write(tenant, range(40, 80), random.Random(2))
    last = len(outdated(tenant).outdated) + 1
    table = "rag.term_segments" if steps < last else "rag.corpus_statistics"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tenant.tenant_id)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for step in range(1, min(steps, last) + 1):
            assert child.stdout.readline() == f"{step}\n"
            if step < min(steps, last):
                child.stdin.write("\n")
                child.stdin.flush()
        # It gets no further than into the statement that would write this table.
        with operator_session() as session:
            session.execute(text(f"lock table {table} in share row exclusive mode"))
            child.stdin.write("\n")
            child.stdin.flush()
            wait_until(lambda: waits_for(table))
            child.send_signal(signal.SIGKILL)
            child.wait()
    wait_until(lambda: not waits_for(table))
    assert given_out(tenant) == before
    for _ in statistics.refreshing(tenant.tenant_id):
        pass
    assert given_out(tenant) == from_the_beginning(tenant)


def waits_for(table: str) -> bool:
    with operator_session() as session:
        waiting = session.execute(
            text("select count(*) from pg_locks where relation = cast(:table as regclass) and not granted"),
            {"table": table},
        )
        return bool(waiting.scalar_one())


def test_nobody_waits_for_a_count(tenant: Principal) -> None:
    """Documents are stored, read and deleted while a segment is being counted and while the sum is being given out;
    until it is, searches read the old one."""
    write(tenant, range(40), random.Random(1))
    with operator_session() as session:
        statistics.refresh(session, tenant.tenant_id)
    before = given_out(tenant)
    write(tenant, range(40, 50), random.Random(2))
    with operator_session() as session:
        statistics.refresh(session, tenant.tenant_id)
        assert _given_out(session, tenant.tenant_id) != before
        with tenant_session(tenant.tenant_id) as other:
            other.execute(text("set local lock_timeout = '1s'"))
            other.execute(text("delete from rag.chunks where tenant_id = :t and ordinal = 3"), {"t": tenant.tenant_id})
            assert _given_out(other, tenant.tenant_id) == before
        write(tenant, range(50, 60), random.Random(3))
    assert given_out(tenant) != from_the_beginning(tenant)
    for _ in statistics.refreshing(tenant.tenant_id):
        pass
    assert given_out(tenant) == from_the_beginning(tenant)


def care(services: Services, *tenants: Principal) -> Iterator[Progress]:
    """The steps of index care on the statistics of these tenants."""
    counts = dict.fromkeys(index_care.COUNTED, 0)
    for done, total in index_care._in_turns([one.tenant_id for one in tenants], counts):
        yield Progress(done, total, dict(counts))


def test_a_small_tenant_does_not_wait_for_a_large_one(
    make_tenant: Callable[..., Principal], fake_services: Services
) -> None:
    """They are served in turns: the small one, last in line, has its numbers before the large one is half counted."""
    large, small = make_tenant(), make_tenant()
    write(large, range(150), random.Random(1))
    write(small, range(6), random.Random(2))
    steps = list(care(fake_services, large, small))
    refreshed = next(n for n, step in enumerate(steps) if step.counts["refreshed"] == 1)
    assert refreshed < len(steps) / 2
    assert given_out(small) == from_the_beginning(small)
    assert given_out(large) == from_the_beginning(large)
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].done == steps[-1].total


def test_what_goes_wrong_with_one_tenant_is_seen_and_does_not_stop_the_others(
    make_tenant: Callable[..., Principal],
    fake_services: Services,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A tenant whose count outlasts its time is logged and counted as failed; the other one is refreshed, and it is
    itself the next time."""
    stuck, other = make_tenant(), make_tenant()
    for who in (stuck, other):
        write(who, range(20), random.Random(1))
    monkeypatch.setattr(statistics, "STEP_SECONDS", 2.0)
    with held(stuck):
        counts = list(care(fake_services, stuck, other))[-1].counts
    assert (counts["failed"], counts["refreshed"]) == (1, 1)
    assert [r.tenant for r in caplog.records if r.levelname == "ERROR"] == [str(stuck.tenant_id)]  # type: ignore[attr-defined]
    assert given_out(stuck) == ({}, None)
    assert given_out(other) == from_the_beginning(other)
    assert list(care(fake_services, stuck))[-1].counts["refreshed"] == 1
    assert given_out(stuck) == from_the_beginning(stuck)


def test_counting_one_tenant_touches_no_other(make_tenant: Callable[..., Principal]) -> None:
    """The same documents at two tenants: no row of one changes when the other is counted or forgets its words."""
    one, other = make_tenant(), make_tenant()
    for who in (one, other):
        write(who, range(20), random.Random(1))
        with operator_session() as session:
            statistics.refresh(session, who.tenant_id)
    before = kept_of(other)
    delete(one, "true")
    for _ in statistics.refreshing(one.tenant_id):
        pass
    assert list(statistics.forgetting(one.tenant_id))[-1] > 10
    assert given_out(one) == ({}, (0, 0.0))
    assert kept_of(one) == {"term_segments": [], "vocabulary": []}
    assert kept_of(other) == before
    assert given_out(other) == from_the_beginning(other)


def kept_of(tenant: Principal) -> dict[str, list[Any]]:
    with operator_session() as session:
        return {
            table: [
                tuple(row)
                for row in session.execute(
                    text(f"select * from rag.{table} where tenant_id = :t order by 1, 2, 3"), {"t": tenant.tenant_id}
                )
            ]
            for table in ("term_segments", "vocabulary")
        }


def test_words_that_come_while_others_are_forgotten_stay(tenant: Principal) -> None:
    """A document stored after the count has words that no segment knows: they are looked up before they are dropped."""
    write(tenant, range(20), random.Random(1))
    delete(tenant, "chunk_id not in (select chunk_id from rag.chunks where tenant_id = :t limit 2)")
    with operator_session() as session:
        statistics.refresh(session, tenant.tenant_id)
    assert words_without_chunk(tenant) > 7
    index(tenant, "new", "Kündigungsfrist Wartungsvertrag Pumpengehäuse")
    for _ in statistics.forgetting(tenant.tenant_id):
        pass
    assert words_without_chunk(tenant) == 0
    assert any(stem.startswith("wartungsvertrag") for stem in vocabulary(tenant))


@pytest.mark.parametrize("sample", [0, 3, 2_000])
def test_an_erased_document_leaves_no_word_of_its_own(
    tenant: Principal, fake_services: Services, monkeypatch: pytest.MonkeyPatch, sample: int
) -> None:
    """Deleted for good: what only it said is in no segment and no vocabulary any more, at once; what others say too
    stays in both, whether they were among the chunks that were read for it or not."""
    monkeypatch.setattr(statistics, "SAMPLE", sample)
    write(tenant, range(30), random.Random(1))
    before = vocabulary(tenant)
    document = index(tenant, "secret", f"Quecksilberdampflampe {' '.join(WORDS)}", "Quecksilberdampflampe")
    with operator_session() as session:
        statistics.refresh(session, tenant.tenant_id)
        term = session.execute(
            text(
                "select rag.term(v.tenant_id, 1, v.language, v.stem) from rag.vocabulary v "
                "where v.tenant_id = :t and v.stem like 'quecksilber%'"
            ),
            {"t": tenant.tenant_id},
        ).scalar_one()
    assert holding(tenant, term) == 1
    actor = Actor(tenant.tenant_id, "operator:test", None, may_overrule=True)
    purge_documents(actor, [document], fake_services.storage)
    assert holding(tenant, term) == 0
    assert vocabulary(tenant) == before
    with operator_session() as session:
        torn = text(
            "select count(*) from rag.term_segments where tenant_id = :t and (cardinality(terms) <> "
            "cardinality(counts) or terms <> array(select t from unnest(terms) t order by t))"
        )
        assert session.execute(torn, {"t": tenant.tenant_id}).scalar() == 0
        statistics.refresh(session, tenant.tenant_id)
    assert given_out(tenant) == from_the_beginning(tenant)


def vocabulary(tenant: Principal) -> set[str]:
    with operator_session() as session:
        stems = text("select stem from rag.vocabulary where tenant_id = :t")
        return set(session.scalars(stems, {"t": tenant.tenant_id}))


def holding(tenant: Principal, term: int) -> int:
    with operator_session() as session:
        number: int = session.execute(
            text("select count(*) from rag.term_segments where tenant_id = :t and :term = any(terms)"),
            {"t": tenant.tenant_id, "term": term},
        ).scalar_one()
    return number


def test_a_closed_tenant_is_not_counted(tenant: Principal) -> None:
    """Erasure is not raced by the count of what it deletes."""
    write(tenant, range(40), random.Random(1))
    with operator_session() as session:
        assert tenant.tenant_id in statistics.stale(session)
        session.execute(text("update core.tenants set closed_at = now() where tenant_id = :t"), {"t": tenant.tenant_id})
        assert tenant.tenant_id not in statistics.stale(session)


def test_a_lease_is_kept_beside_a_statement_that_outlasts_it(database: object) -> None:
    """An index over a million vectors is built for longer than a lease; who was superseded renews nothing."""
    slot = datetime.now(UTC)
    with operator_session() as session:
        lease = leases.take(session, "test-kept", slot)
    ends = [lease_end(lease)]
    with leases.kept(lease, every=0.01):
        wait_until(lambda: lease_end(lease) > ends[0])
        wait_until(lambda: lease_end(lease) > ends[0])
        with operator_session() as session:
            assert leases.fail(session, lease.job, slot, "given-up")
        ends.append(lease_end(lease))
    assert lease_end(lease) == ends[1]
    with pytest.raises(Superseded), leases.fenced(lease):
        pass


def lease_end(lease: Lease) -> datetime:
    with operator_session() as session:
        end: datetime = session.execute(
            text("select lease_until from core.job_runs where job = :job and slot = :slot"),
            {"job": lease.job, "slot": lease.slot},
        ).scalar_one()
    return end


def test_a_sum_that_would_leave_something_out_is_not_given_out(tenant: Principal) -> None:
    """The corpus has grown into another cut before the sum, or segments were dropped: counted first, then given out."""
    write(tenant, range(40), random.Random(1))
    with operator_session() as session:
        statistics.refresh(session, tenant.tenant_id)
    before, bits = given_out(tenant), outdated(tenant).bits
    write(tenant, range(40, 160), random.Random(2))
    for left in ("the old cut", "half of the new one"):
        with operator_session() as session:
            assert statistics.give_out(session, tenant.tenant_id, bits) is None, left
            for segment in segments.look(session, tenant.tenant_id).outdated[::2]:
                segments.count(session, tenant.tenant_id, segment)
        bits = outdated(tenant).bits
    assert given_out(tenant) == before
    for _ in statistics.refreshing(tenant.tenant_id):
        pass
    assert given_out(tenant) == from_the_beginning(tenant)
