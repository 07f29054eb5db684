"""What the database holds of a tenant, read from its catalogue: a table that is added tomorrow is exported, erased and
searched without a word of code."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

TENANTS, TOMBSTONES, AUDIT, LETTERS = "core.tenants", "core.erasures", "core.audit", "core.dead_letters"

KEPT = {TOMBSTONES, AUDIT}
"""What may name a tenant for ever: that it was erased, and what was done to it, by ids."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its columns: name to type, and the names of its primary key in order."""

    name: str
    columns: dict[str, str]
    key: tuple[str, ...]

    @property
    def has_tenant(self) -> bool:
        """Whether its rows may belong to a tenant."""
        return "tenant_id" in self.columns


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key between two tables; `loose` are its columns that may be null, `cascades` when the parent goes."""

    child: str
    parent: str
    loose: tuple[str, ...]
    cascades: bool


def tables(session: Session) -> list[Table]:
    """Every table of core and rag, by name; partitions are part of their table."""
    rows = session.execute(
        text(
            "select n.nspname || '.' || c.relname as name, a.attname, format_type(a.atttypid, null) as type, "
            "array_position(cast(i.indkey as int2[]), a.attnum) as place "
            "from pg_class c join pg_namespace n on n.oid = c.relnamespace "
            "join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped "
            "left join pg_index i on i.indrelid = c.oid and i.indisprimary "
            "where n.nspname in ('core', 'rag') and c.relkind in ('r', 'p') and not c.relispartition "
            "order by 1, a.attnum"
        )
    ).all()
    columns: dict[str, dict[str, str]] = {}
    keys: dict[str, dict[int, str]] = {}
    for row in rows:
        columns.setdefault(row.name, {})[row.attname] = row.type
        if row.place is not None:
            keys.setdefault(row.name, {})[row.place] = row.attname
    return [
        Table(name, found, tuple(column for _, column in sorted(keys.get(name, {}).items())))
        for name, found in columns.items()
    ]


def tenant_tables(session: Session) -> list[Table]:
    """The tables whose rows belong to tenants, by name."""
    return [table for table in tables(session) if table.has_tenant and table.name not in KEPT | {LETTERS}]


def references(session: Session) -> list[Reference]:
    """The foreign keys of core and rag."""
    rows = session.execute(
        text(
            "select pn.nspname || '.' || p.relname as parent, cn.nspname || '.' || c.relname as child, "
            "f.confdeltype = 'c' as cascades, array(select attname::text from pg_attribute a where a.attrelid = c.oid "
            "and a.attnum = any(f.conkey) and not a.attnotnull) as loose "
            "from pg_constraint f join pg_class c on c.oid = f.conrelid "
            "join pg_namespace cn on cn.oid = c.relnamespace "
            "join pg_class p on p.oid = f.confrelid join pg_namespace pn on pn.oid = p.relnamespace "
            "where f.contype = 'f' and cn.nspname in ('core', 'rag') and f.conparentid = 0 "
            "order by 2, 1"
        )
    )
    return [Reference(row.child, row.parent, tuple(row.loose), row.cascades) for row in rows]


def deletion_order(names: list[str], found: list[Reference]) -> tuple[list[str], list[Reference]]:
    """Children before parents, and the references that must be set to null first, because they go round in a circle.

    A circle of references that neither may be null nor cascade cannot be deleted at all: ValueError.
    """
    left, order = set(names), list[str]()
    edges = [edge for edge in found if edge.child in left and edge.parent in left]
    # Within a table too: a cascade from one slice to the next would take rows along that nobody counts.
    loosened = [edge for edge in edges if edge.child == edge.parent and edge.loose]
    edges = [edge for edge in edges if edge.child != edge.parent]
    while left:
        held = {edge.parent for edge in edges if edge.child in left}
        free = sorted(left - held)
        if free:
            order += free
            left -= set(free)
            continue
        inside = [edge for edge in edges if edge.child in left and edge.parent in left]
        # Prefer to keep what is null-able apart: a cascade would take rows along that nobody counts.
        broken = next((edge for edge in inside if edge.loose), None) or next((e for e in inside if e.cascades), None)
        if broken is None:
            raise ValueError(f"rows of {', '.join(sorted(left))} refer to each other and cannot be deleted")
        if broken.loose:
            loosened.append(broken)
        edges.remove(broken)
    return order, loosened


@dataclass(frozen=True, slots=True)
class Findings:
    """Where a tenant's id was found: rows by `table.column` that are its own or nobody's, and that are others'."""

    searched: int
    own: dict[str, int]
    foreign: dict[str, int]


_ARRAYS = {"uuid[]": "cast(:id as uuid) = any({0})", "text[]": "strpos(lower(cast({0} as text)), :text) > 0"}
_SEARCHES = {
    "uuid": "{0} = cast(:id as uuid)",
    "text": "strpos(lower({0}), :text) > 0",
    "character varying": "strpos(lower({0}), :text) > 0",
    "json": "strpos(lower(cast({0} as text)), :text) > 0",
    "jsonb": "strpos(lower(cast({0} as text)), :text) > 0",
    "bytea": "(position(cast(:bytes as bytea) in {0}) > 0 or position(cast(:raw as bytea) in {0}) > 0)",
} | _ARRAYS


def search(session: Session, tenant_id: UUID) -> Findings:
    """Look for a tenant's id in every column that can hold one, of every table, and in the definitions of indexes.

    What is KEPT on purpose is left out. Reads every table whole: seconds on a laptop, minutes on a large database;
    `patiently` is the caller's business.
    """
    values = {
        "id": str(tenant_id),
        "text": str(tenant_id),
        "bytes": str(tenant_id).encode(),
        "raw": tenant_id.bytes,
    }
    searched = 0
    own: dict[str, int] = {}
    foreign: dict[str, int] = {}
    for table in tables(session):
        conditions = {
            column: _SEARCHES[kind].format(f'"{column}"') for column, kind in table.columns.items() if kind in _SEARCHES
        }
        if table.name in KEPT or not conditions:
            continue
        searched += len(conditions)
        whose = "tenant_id <> cast(:id as uuid)" if table.has_tenant else "false"
        counted = ", ".join(
            f"count(*) filter (where {condition} and ({whose}) is not true), "
            f"count(*) filter (where {condition} and ({whose}))"
            for condition in conditions.values()
        )
        hit = " or ".join(conditions.values())
        for piece in _pieces(session, table.name):
            row = session.execute(text(f"select {counted} from {table.name} where {piece} and ({hit})"), values).one()
            for number, column in enumerate(conditions):
                for found, count in ((own, row[2 * number]), (foreign, row[2 * number + 1])):
                    if count:
                        found[f"{table.name}.{column}"] = found.get(f"{table.name}.{column}", 0) + int(count)
    if named := indexes_of(session, tenant_id):
        own["indexes"] = len(named)
    return Findings(searched, own, foreign)


PIECE = 2_048
"""Blocks of a statement, 16 MB without what is kept out of line."""

STATEMENT_SECONDS = 600.0
"""How long a statement on all that a tenant has may take, and the search of a piece: what lies out of line may be a
thousand times the piece. For commands of operators, who see them go on."""


def _pieces(session: Session, table: str) -> list[str]:
    """Conditions that each hold for a part of a table, all together for the whole, whatever is added meanwhile."""
    blocks = session.execute(
        text("select pg_relation_size(cast(:t as regclass)) / current_setting('block_size')::bigint"), {"t": table}
    ).scalar_one()
    borders = [f"'({block},0)'::tid" for block in range(PIECE, blocks, PIECE)]
    starts, ends = [None, *borders], [*borders, None]
    return [
        " and ".join([f"ctid >= {start}"] * bool(start) + [f"ctid < {end}"] * bool(end)) or "true"
        for start, end in zip(starts, ends, strict=True)
    ]


def indexes_of(session: Session, tenant_id: UUID) -> list[str]:
    """Indexes made for one tenant: their definition names it."""
    return list(
        session.scalars(
            text(
                "select schemaname || '.' || indexname from pg_indexes where schemaname in ('core', 'rag') "
                "and strpos(indexdef, :id) > 0 order by 1"
            ),
            {"id": str(tenant_id)},
        )
    )
