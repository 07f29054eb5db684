"""Reading and writing tenants, members, groups and source bindings."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID, uuid4, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.database import platform_session
from shared.errors import PermanentError

SOURCES = ("upstream", "web")
"""The sources of terraform/topology.yaml that every new tenant is bound to."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who acts: a member of one tenant, as authenticated. Never built from a header or a message."""

    tenant_id: UUID
    tenant_slug: str
    tenant_name: str
    member_id: UUID
    email: str
    name: str
    role: str


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant as operators see it."""

    tenant_id: UUID
    slug: str
    name: str


def create_tenant(operator: Session, slug: str, name: str, admin_email: str) -> Tenant:
    """Create a tenant with its first administrator, the default collection and bindings; idempotent by slug.

    `operator` is an operator_session: a tenant cannot create itself.
    """
    tenant_id, closed_at = operator.execute(
        text(
            "insert into core.tenants (tenant_id, slug, name) values (:id, :slug, :name) "
            "on conflict (slug) do update set slug = excluded.slug returning tenant_id, closed_at"
        ),
        {"id": uuid4(), "slug": slug, "name": name},
    ).one()
    if closed_at is not None:
        raise PermanentError(
            "tenant-closed", f"The tenant “{slug}” is being erased.", "Wait for its end, or take another slug."
        )
    for source in SOURCES:
        bind_source(operator, tenant_id, source)
    operator.execute(
        text(
            "insert into rag.collections (tenant_id, collection_id, name) values (:tenant, :id, 'default') "
            "on conflict do nothing"
        ),
        {"tenant": tenant_id, "id": uuid5(tenant_id, "collection:default")},
    )
    add_member(operator, tenant_id, admin_email, name=admin_email.partition("@")[0], role="admin")
    return Tenant(tenant_id, slug, name)


def add_member(session: Session, tenant_id: UUID, email: str, *, name: str, role: str = "member") -> UUID:
    """Add a member, or change the name and role of an existing one; returns the member id."""
    row = session.execute(
        text(
            "insert into core.members (tenant_id, member_id, email, name, role) "
            "values (:tenant, :id, :email, :name, :role) on conflict (tenant_id, email) "
            "do update set name = excluded.name, role = excluded.role returning member_id"
        ),
        {"tenant": tenant_id, "id": uuid4(), "email": email.lower(), "name": name, "role": role},
    )
    member_id: UUID = row.scalar_one()
    return member_id


def remove_member(operator: Session, tenant_id: UUID, email: str) -> UUID | None:
    """Remove a member with their conversations, answers and feedback; returns the member's id, None for a stranger.

    A question of theirs that is being answered ends. What they uploaded is the tenant's and stays. Raises
    PermanentError `last-admin`: nobody could act for the tenant.
    """
    admins = operator.execute(
        text("select email from core.members where tenant_id = :tenant and role = 'admin' for update"),
        {"tenant": tenant_id},
    ).scalars()
    if list(admins) == [email.lower()]:
        raise PermanentError(
            "last-admin", f"{email} is the only administrator.", "Make somebody else administrator first."
        )
    gone: UUID | None = operator.execute(
        text("delete from core.members where tenant_id = :tenant and email = :email returning member_id"),
        {"tenant": tenant_id, "email": email.lower()},
    ).scalar()
    return gone


def add_to_group(session: Session, tenant_id: UUID, group: str, member_id: UUID) -> None:
    """Put a member into a group, which is made when it does not exist. Raises ValueError without a name."""
    if not group.strip():
        raise ValueError("a group has a name")  # the empty one is nobody's: shared.documents.access
    group_id = session.execute(
        text(
            "insert into core.groups (tenant_id, group_id, name) values (:tenant, :id, :name) "
            "on conflict (tenant_id, name) do update set name = excluded.name returning group_id"
        ),
        {"tenant": tenant_id, "id": uuid4(), "name": group},
    ).scalar_one()
    session.execute(
        text("insert into core.group_members values (:tenant, :group, :member) on conflict do nothing"),
        {"tenant": tenant_id, "group": group_id, "member": member_id},
    )


def remove_from_group(session: Session, tenant_id: UUID, group: str, email: str) -> bool:
    """Take a member out of a group; False when they are not in it. What only the group may see, they see no more."""
    gone = session.execute(
        text(
            "delete from core.group_members gm using core.groups g, core.members m where gm.tenant_id = :tenant "
            "and g.tenant_id = gm.tenant_id and g.group_id = gm.group_id and g.name = :group "
            "and m.tenant_id = gm.tenant_id and m.member_id = gm.member_id and m.email = :email"
        ),
        {"tenant": tenant_id, "group": group, "email": email.lower()},
    )
    return bool(gone.rowcount)  # type: ignore[attr-defined]


def unbind_source(session: Session, tenant_id: UUID, source: str) -> bool:
    """Let a source speak for a tenant no more; False when it could not. What it sent before stays."""
    gone = session.execute(
        text("delete from core.sources where tenant_id = :tenant and source = :source"),
        {"tenant": tenant_id, "source": source},
    )
    return bool(gone.rowcount)  # type: ignore[attr-defined]


def bind_source(session: Session, tenant_id: UUID, source: str) -> None:
    """Allow a source to speak for a tenant."""
    session.execute(
        text("insert into core.sources (tenant_id, source) values (:tenant, :source) on conflict do nothing"),
        {"tenant": tenant_id, "source": source},
    )


def may_speak(session: Session, tenant_id: UUID, source: str) -> bool:
    """Whether the source is bound to the tenant, and the tenant is not being erased."""
    bound = session.execute(
        text(
            "select 1 from core.sources s join core.tenants t on t.tenant_id = s.tenant_id "
            "where s.tenant_id = :tenant and s.source = :source and t.closed_at is null"
        ),
        {"tenant": tenant_id, "source": source},
    )
    return bound.scalar() is not None


def require_source(session: Session, tenant_id: UUID, source: str) -> None:
    """Raise PermanentError `source-not-bound` unless the source may speak for the tenant.

    The answer is the same for an unknown tenant: no message learns which tenants exist.
    """
    if not may_speak(session, tenant_id, source):
        raise not_bound()


def not_bound() -> PermanentError:
    """The source of a message may not speak for its tenant."""
    return PermanentError(
        "source-not-bound",
        "This source may not speak for the tenant of the message.",
        "Have an operator bind the source to the tenant (`noesis tenants bind`), or correct the tenant id.",
    )


def list_tenants(operator: Session) -> list[Tenant]:
    """All tenants, by slug. For operators."""
    rows = operator.execute(text("select tenant_id, slug, name from core.tenants order by slug"))
    return [Tenant(*row) for row in rows]


def find_tenant(operator: Session, reference: str) -> Tenant:
    """A tenant by slug or id. Raises PermanentError `unknown-tenant`. For operators."""
    row = operator.execute(
        text("select tenant_id, slug, name from core.tenants where slug = :ref or cast(tenant_id as text) = :ref"),
        {"ref": reference},
    ).first()
    if row is None:
        raise PermanentError("unknown-tenant", f"There is no tenant “{reference}”.", "See `noesis tenants list`.")
    return Tenant(*row)


def memberships(email: str) -> list[Principal]:
    """The tenants an authenticated person belongs to, by slug."""
    with platform_session() as session:
        rows = session.execute(
            text("select tenant_id, slug, tenant_name, member_id, email, name, role from core.memberships(:email)"),
            {"email": email},
        )
        return [Principal(*row) for row in rows]
