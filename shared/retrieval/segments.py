"""What lexical search knows of a corpus is counted in segments: thousands of chunks, by the first bits of a version.

A segment is counted in less than a second, in a transaction of its own, whatever the size of the corpus; whether it has
changed since is seen from the ids of its chunks, without reading their words: under an id they never change. No search
reads segments: `shared.retrieval.statistics` adds them up and gives out the sum. For operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import array_literal

CHUNKS = 4_000
"""Chunks of a segment on average, at most; at least a quarter of it."""

ID_BITS = 128


@dataclass(frozen=True, slots=True)
class Segment:
    """The chunks whose version's id begins with the `bits` bits of `part`."""

    bits: int
    part: int

    @property
    def first(self) -> UUID:
        """The smallest version id of the segment."""
        return UUID(int=self.part << (ID_BITS - self.bits))

    @property
    def last(self) -> UUID:
        """The largest version id of the segment."""
        return UUID(int=((self.part + 1) << (ID_BITS - self.bits)) - 1)


@dataclass(frozen=True, slots=True)
class Look:
    """How a tenant's corpus stands: by how many bits it is to be cut, which segments are to be counted.

    `whole`: each segment has been counted at some time, so that their sum leaves nothing out but what is new.
    """

    bits: int
    outdated: tuple[Segment, ...]
    whole: bool


class Piece(NamedTuple):
    """Terms, as numbers: those above the first and up to the second."""

    above: int
    upto: int


def bits_for(chunks: int) -> int:
    """By how many bits a corpus is cut. In steps of two, so that a growing one is cut anew at four times its size."""
    bits = 0
    while chunks >> bits > CHUNKS:
        bits += 2
    return bits


def lock(operator: Session, tenant_id: UUID) -> None:
    """Wait for everybody else who writes the tenant's segments or their sum, until the end of the transaction.

    What is read afterwards, by a statement of its own, is what they left.
    """
    operator.execute(
        text("select pg_advisory_xact_lock(hashtextextended('statistics:' || cast(:tenant as text), 0))"),
        {"tenant": tenant_id},
    )


def look(operator: Session, tenant_id: UUID) -> Look:
    """Compare the segments that are counted with the chunks that are there, by their ids alone."""
    number: int = operator.execute(
        text("select count(*) from rag.chunk_terms where tenant_id = :tenant"), {"tenant": tenant_id}
    ).scalar_one()
    bits = bits_for(number)
    found = operator.execute(
        text(
            "select coalesce(there.part, known.part) as part, known.part is null as uncounted "
            f"from ({_THERE}) there "
            "full join (select s.part, s.chunks, s.fingerprint from rag.term_segments s "
            "where s.tenant_id = :tenant and s.bits = :bits) known on known.part = there.part "
            "where (there.chunks, there.fingerprint) is distinct from (known.chunks, known.fingerprint) order by 1"
        ),
        {"tenant": tenant_id, "bits": bits, "borders": array_literal(_borders(bits))},
    ).all()
    return Look(bits, tuple(Segment(bits, row.part) for row in found), not any(row.uncounted for row in found))


# Both keys of this index are in it: no row of a chunk is read where VACUUM has been.
_FINGERPRINT = "count(*) as chunks, bit_xor(uuid_hash_extended(c.chunk_id, 0)) as fingerprint"
_THERE = (
    f"select width_bucket(c.version_id, cast(:borders as uuid[])) as part, {_FINGERPRINT} "
    "from rag.chunk_terms c where c.tenant_id = :tenant group by 1"
)


def _borders(bits: int) -> Sequence[UUID]:
    return [Segment(bits, part).first for part in range(1, 1 << bits)]


def count(operator: Session, tenant_id: UUID, segment: Segment) -> None:
    """Count a segment anew. Its row is there as a whole or as it was; whoever does it again does the same."""
    values = {
        "tenant": tenant_id,
        "bits": segment.bits,
        "part": segment.part,
        "first": segment.first,
        "last": segment.last,
    }
    lock(operator, tenant_id)
    if operator.execute(text(_COUNT), values).rowcount == 0:  # type: ignore[attr-defined]
        operator.execute(
            text("delete from rag.term_segments where tenant_id = :tenant and bits = :bits and part = :part"), values
        )


_COUNT = f"""
with chunks as materialized (
    select c.chunk_id, c.length, c.terms from rag.chunk_terms c
    where c.tenant_id = :tenant and c.version_id between :first and :last
), counted as (
    select t.term, count(*) as chunks from chunks c cross join lateral unnest(c.terms) t(term) group by t.term
)
insert into rag.term_segments (tenant_id, bits, part, chunks, length, fingerprint, terms, counts)
select :tenant, :bits, :part, whole.chunks, whole.length, whole.fingerprint,
       coalesce(words.terms, '{{}}'), coalesce(words.counts, '{{}}')
from (select {_FINGERPRINT}, sum(c.length) as length from chunks c) whole
cross join (select array_agg(n.term order by n.term) as terms, array_agg(n.chunks order by n.term) as counts
            from counted n) words
where whole.chunks > 0
on conflict (tenant_id, bits, part) do update set chunks = excluded.chunks, length = excluded.length,
    fingerprint = excluded.fingerprint, terms = excluded.terms, counts = excluded.counts
"""


def pieces(operator: Session, tenant_id: UUID, entries_each: int) -> list[Piece]:
    """The pieces in which the tenant's segments are read one after the other, by about so many entries each."""
    entries: int = operator.execute(
        text("select coalesce(sum(cardinality(terms)), 0) from rag.term_segments where tenant_id = :tenant"),
        {"tenant": tenant_id},
    ).scalar_one()
    number = 1 + int(entries) // entries_each
    borders = [-(1 << 31) + (1 << 32) * place // number for place in range(number)]
    return [Piece(above, upto) for above, upto in zip(borders, [*borders[1:], (1 << 31) - 1], strict=True)]


# Terms stand in order: a range of them is found in an array without looking at the rest, and set-returning functions
# in the list of columns give rows out without storing them first (a quarter of the time of one in the FROM).
ENTRIES = """(select unnest(s.terms[s.below + 1:s.upto]) as term, unnest(s.counts[s.below + 1:s.upto]) as chunks
from (select g.terms, g.counts, width_bucket(cast(:above as integer), g.terms) as below,
             width_bucket(cast(:upto as integer), g.terms) as upto
      from rag.term_segments g where g.tenant_id = :tenant offset 0) s)"""
"""Terms of a piece with their numbers, once for each segment they are in."""


def forget_others(operator: Session, tenant_id: UUID, bits: int) -> None:
    """Drop the segments of a corpus that is cut otherwise now."""
    operator.execute(
        text("delete from rag.term_segments where tenant_id = :tenant and bits <> :bits"),
        {"tenant": tenant_id, "bits": bits},
    )


def forget_terms(operator: Session, tenant_id: UUID, versions: Sequence[UUID], terms: Sequence[int]) -> None:
    """Take terms that no chunk has any more out of the segments these versions were counted in.

    For erasure, in the transaction that deletes the chunks. Everything else of a segment is put right at the next
    count, because its fingerprint is no longer that of its chunks.
    """
    lock(operator, tenant_id)
    stored = operator.execute(
        text("select distinct bits from rag.term_segments where tenant_id = :tenant"), {"tenant": tenant_id}
    ).scalars()
    for bits in stored.all():
        values: dict[str, Any] = {"tenant": tenant_id, "bits": bits, "terms": array_literal(terms)}
        values["parts"] = array_literal({version.int >> (ID_BITS - bits) for version in versions})
        operator.execute(text(_FORGET), values)


_FORGET = """
with gone as materialized (select t.term from unnest(cast(:terms as integer[])) t(term))
update rag.term_segments s set (terms, counts) = (
    select coalesce(array_agg(w.term order by w.term), '{}'), coalesce(array_agg(w.chunks order by w.term), '{}')
    from unnest(s.terms, s.counts) w(term, chunks) where w.term not in (select g.term from gone g))
where s.tenant_id = :tenant and s.bits = :bits and s.part = any(cast(:parts as integer[]))
"""
