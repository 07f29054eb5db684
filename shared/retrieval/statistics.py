"""Statistics of a tenant's corpus for lexical search: size, mean length, and in how many chunks common terms are.

For operators. A tenant without statistics is searched rightly, only with more work; index care refreshes them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import array_literal, operator_session, patiently
from shared.retrieval import segments

RARE = 100
"""Terms in fewer chunks have no row: they are counted when they are asked for (`rag.lexical_candidates` assumes so)."""

SMALL = 1_000
"""Chunks below which statistics are not worth their rows: counting everything takes a millisecond."""

STEP_SECONDS = 150.0
"""How long a statement may take: a step takes seconds, and the lease of the job it belongs to ends after 180."""

WORDS = 20_000
"""Words that are forgotten in a transaction."""

ENTRIES_SUMMED, ENTRIES_READ = 4_000_000, 16_000_000
"""Entries of segments that one statement adds up, and that one compares with the vocabulary, which it reads whole."""

MEMORY = "set local work_mem = '64MB'"
"""For sums of some hundred thousand terms: they would be written to disk in parts otherwise."""

SAMPLE = 2_000
"""Chunks that are read to see which words are certainly still there."""


def stale(operator: Session) -> list[UUID]:
    """Tenants whose statistics are missing, a tenth off, or a week old; those that waited longest first.

    Tenants that are being erased are none. A statement a tenant, and of the small ones no more than SMALL chunks.
    """
    tenants = operator.execute(
        text(
            "select t.tenant_id, s.chunks, coalesce(s.refreshed_at < now() - interval '7 days', false) as old "
            "from core.tenants t left join rag.corpus_statistics s on s.tenant_id = t.tenant_id "
            "where t.closed_at is null order by s.refreshed_at nulls first, t.tenant_id"
        )
    ).all()
    return [row.tenant_id for row in tenants if row.old or _has_changed(operator, row.tenant_id, row.chunks)]


def _has_changed(operator: Session, tenant_id: UUID, known: int | None) -> bool:
    """Whether a tenant's corpus is a tenth larger or smaller than known, or large enough to become known."""
    limit = SMALL if known is None else int(known * 1.1) + 1
    there: int = operator.execute(
        text("select count(*) from (select from rag.chunk_terms where tenant_id = :tenant limit :limit) c"),
        {"tenant": tenant_id, "limit": limit},
    ).scalar_one()
    return there >= SMALL if known is None else abs(there - known) > 0.1 * known


def refreshing(tenant_id: UUID) -> Generator[tuple[int, int], None, None]:
    """Count what has changed of a tenant's corpus and give out the sum; yields (steps done, steps in all).

    Every step is a transaction of its own: whoever is stopped between two has counted for the next one, and until the
    last step searches go by what was given out before.
    """
    done, given = 0, False
    while not given:
        with operator_session() as session, patiently(session, STEP_SECONDS):
            found = segments.look(session, tenant_id)
        done, steps = done + 1, done + len(found.outdated) + 2
        yield done, steps
        for segment in found.outdated:
            with operator_session() as session, patiently(session, STEP_SECONDS):
                segments.count(session, tenant_id, segment)
            done += 1
            yield done, steps
        with operator_session() as session, patiently(session, STEP_SECONDS):
            given = give_out(session, tenant_id, found.bits) is not None
        done += 1
        yield done, steps


def refresh(operator: Session, tenant_id: UUID) -> int:
    """The same in one transaction, for a corpus that is not large; returns how many terms are common."""
    segments.lock(operator, tenant_id)
    while True:
        found = segments.look(operator, tenant_id)
        for segment in found.outdated:
            segments.count(operator, tenant_id, segment)
        common = give_out(operator, tenant_id, found.bits)
        if common is not None:
            return common


def give_out(operator: Session, tenant_id: UUID, bits: int) -> int | None:
    """Add up the tenant's segments and let searches go by it from the commit on; returns how many terms are common.

    Readers see the whole old or the whole new sum. None, and nothing is changed: the corpus is to be cut by other
    `bits` by now, or somebody who thought so has dropped segments; they have to be counted first.
    """
    segments.lock(operator, tenant_id)
    now = segments.look(operator, tenant_id)
    if now.bits != bits or not now.whole:
        return None
    operator.execute(text(MEMORY))
    segments.forget_others(operator, tenant_id, bits)
    operator.execute(text("delete from rag.term_statistics where tenant_id = :tenant"), {"tenant": tenant_id})
    common = 0
    for above, upto in segments.pieces(operator, tenant_id, ENTRIES_SUMMED):
        counted = operator.execute(
            text(
                "insert into rag.term_statistics (tenant_id, term, chunks) "
                f"select :tenant, t.term, sum(t.chunks) from {segments.ENTRIES} t "
                "group by t.term having sum(t.chunks) >= :rare"
            ),
            {"tenant": tenant_id, "rare": RARE, "above": above, "upto": upto},
        )
        common += counted.rowcount  # type: ignore[attr-defined]
    operator.execute(
        text(
            "insert into rag.corpus_statistics (tenant_id, chunks, average_length) "
            "select :tenant, coalesce(sum(chunks), 0), coalesce(sum(length) / sum(chunks), 0) "
            "from rag.term_segments where tenant_id = :tenant "
            "on conflict (tenant_id) do update set chunks = excluded.chunks, "
            "average_length = excluded.average_length, refreshed_at = now()"
        ),
        {"tenant": tenant_id},
    )
    return common


def forgetting(tenant_id: UUID) -> Iterator[int]:
    """Forget the words that no chunk of the tenant has any more; yields how many so far, a transaction each."""
    forgotten = 0
    with operator_session() as session:
        pieces = segments.pieces(session, tenant_id, ENTRIES_READ)
    for piece in pieces:
        place, more = _Word("", ""), True
        while more:
            with operator_session() as session, patiently(session, STEP_SECONDS):
                doubtful = _doubtful(session, tenant_id, piece, place)
                forgotten += _forget(session, tenant_id, doubtful)
            more = len(doubtful) == WORDS
            place = doubtful[-1] if doubtful else place
            yield forgotten


def prune(operator: Session, tenant_id: UUID) -> int:
    """The same in one transaction, for a corpus that is not large; returns how many words are forgotten."""
    forgotten = 0
    for piece in segments.pieces(operator, tenant_id, ENTRIES_READ):
        place = _Word("", "")
        while doubtful := _doubtful(operator, tenant_id, piece, place):
            forgotten += _forget(operator, tenant_id, doubtful)
            place = doubtful[-1]
    return forgotten


class _Word(NamedTuple):
    language: str
    stem: str


def _doubtful(operator: Session, tenant_id: UUID, piece: segments.Piece, after: _Word) -> list[_Word]:
    """Words behind another one that were in no chunk when segments were last counted, at most WORDS of them.

    Set against set: asking for every word whether some chunk has it took 18 s for 5,500 words in 300 chunks.
    """
    operator.execute(text(MEMORY))
    operator.execute(text("set local enable_nestloop = off"))
    rows = operator.execute(
        text(
            f"with present as materialized (select distinct t.term from {segments.ENTRIES} t) "
            "select w.language, w.stem from (select v.language, v.stem, rag.term(v.tenant_id, 1, v.language, v.stem) "
            "as term from rag.vocabulary v where v.tenant_id = :tenant "
            'and (v.language, v.stem) > (:language, cast(:stem as text) collate "C") offset 0) w '
            "where w.term > :above and w.term <= :upto and not exists (select from present p where p.term = w.term) "
            "order by w.language, w.stem limit :limit"
        ),
        {"tenant": tenant_id, "language": after.language, "stem": after.stem, "limit": WORDS}
        | {"above": piece.above, "upto": piece.upto},
    ).all()
    operator.execute(text("set local enable_nestloop = on"))
    return [_Word(row.language, row.stem) for row in rows]


def _forget(operator: Session, tenant_id: UUID, words: Sequence[_Word]) -> int:
    """Delete those of these words that are in no chunk now: some have come since segments were counted."""
    if not words:
        return 0
    operator.execute(text("set local enable_seqscan = off"))
    gone = operator.execute(
        text(
            "with words as materialized (select w.language, w.stem, rag.term(:tenant, 1, w.language, w.stem) as term "
            "from unnest(cast(:languages as text[]), cast(:stems as text[])) w(language, stem)), "
            # Fenced by OFFSET: one probe of the index a word, never a join over all chunks.
            "gone as materialized (select w.language, w.stem from words w "
            "where not exists (select from rag.chunk_terms c where c.terms @> array[w.term] offset 0)) "
            "delete from rag.vocabulary v using gone g "
            "where v.tenant_id = :tenant and v.language = g.language and v.stem = g.stem"
        ),
        {
            "tenant": tenant_id,
            "languages": array_literal(word.language for word in words),
            "stems": array_literal(word.stem for word in words),
        },
    )
    operator.execute(text("set local enable_seqscan = on"))
    number: int = gone.rowcount  # type: ignore[attr-defined]
    return number


@dataclass(frozen=True, slots=True)
class Counted:
    """What documents' chunks are counted by: their terms, and the versions, which say in which segments."""

    terms: tuple[int, ...]
    versions: tuple[UUID, ...]


def terms_of(operator: Session, tenant_id: UUID, documents: Sequence[UUID]) -> Counted:
    """What `prune_terms` is asked about once the documents' chunks are gone."""
    versions = (
        operator.execute(
            text(
                "select version_id from rag.versions "
                "where tenant_id = :tenant and document_id = any(cast(:documents as uuid[]))"
            ),
            {"tenant": tenant_id, "documents": array_literal(documents)},
        )
        .scalars()
        .all()
    )
    terms = operator.execute(
        # By version, of which there is an index.
        text(
            "select distinct t.term from rag.chunk_terms c cross join lateral unnest(c.terms) t(term) "
            "where c.tenant_id = :tenant and c.version_id = any(cast(:versions as uuid[]))"
        ),
        {"tenant": tenant_id, "versions": array_literal(versions)},
    ).scalars()
    return Counted(tuple(terms), tuple(versions))


def prune_terms(operator: Session, tenant_id: UUID, counted: Counted) -> int:
    """Forget those of these words that no chunk of the tenant has any more; returns how many.

    Reads SAMPLE chunks, the tenant's vocabulary once, and the index on terms for those the sample does not have.
    """
    operator.execute(text("set local enable_seqscan = off"))
    gone = operator.execute(
        text(_GONE), {"tenant": tenant_id, "terms": array_literal(counted.terms), "sample": SAMPLE}
    ).scalars()
    terms = gone.all()
    words = 0
    if terms:
        forgotten = operator.execute(
            text(
                "delete from rag.vocabulary v where v.tenant_id = :tenant "
                "and rag.term(v.tenant_id, 1, v.language, v.stem) = any(cast(:terms as integer[]))"
            ),
            {"tenant": tenant_id, "terms": array_literal(terms)},
        )
        words = forgotten.rowcount  # type: ignore[attr-defined]
        segments.forget_terms(operator, tenant_id, counted.versions, terms)
    operator.execute(text("set local enable_seqscan = on"))
    return words


# The index gives all chunks of a term before the first is looked at: for the common words of ten documents among a
# million chunks that took 23 s of processor time. What a few chunks have is there; few chunks have what those do not.
_GONE = """
with seen as materialized (
    select distinct t.term from (select c.terms from rag.chunk_terms c where c.tenant_id = :tenant limit :sample) c
    cross join lateral unnest(c.terms) t(term)
), doubtful as materialized (
    select t.term from unnest(cast(:terms as integer[])) t(term) where t.term not in (select s.term from seen s)
)
select d.term from doubtful d
-- Fenced by OFFSET: one probe of the index a term, never a join over all chunks.
where not exists (select from rag.chunk_terms c where c.terms @> array[d.term] offset 0)
"""
