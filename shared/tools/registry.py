"""What a tenant allows of the catalogue: which tools, to whom, and when a person must agree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.audit import record
from shared.database import array_literal
from shared.errors import PermanentError
from shared.tools.catalogue import TOOLS, Asking, Tool, find_tool
from shared.tools.egress import HttpSettings

ROLES = ("member", "curator", "admin", "operator")
ASKER = "asker"
"""Among approvers: whoever asked the question may decide, whatever their role (not under four eyes)."""

APPROVERS = ("curator", "admin")
PATIENCE = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Grant:
    """A tool as one tenant allows it. `roles` empty: every member. `patience`: how long an approval waits."""

    tool: Tool
    enabled: bool
    roles: tuple[str, ...]
    asking: Asking
    approvers: tuple[str, ...]
    four_eyes: bool
    patience: timedelta
    settings: dict[str, Any]

    def permits(self, role: str) -> bool:
        """Whether a member of this role may use the tool."""
        return self.enabled and (not self.roles or role in self.roles)


def default_grant(tool: Tool) -> Grant:
    """What holds where the tenant has said nothing."""
    return Grant(tool, tool.enabled, (), tool.asking, APPROVERS, True, PATIENCE, {})


def grants(session: Session, tenant_id: UUID) -> dict[str, Grant]:
    """Every tool of the catalogue as the tenant allows it, by name."""
    rows = session.execute(
        text(
            "select name, enabled, roles, asking, approvers, four_eyes, patience_hours, settings "
            "from core.tenant_tools where tenant_id = :tenant"
        ),
        {"tenant": tenant_id},
    )
    found = {name: default_grant(tool) for name, tool in TOOLS.items()}
    for row in rows:
        if row.name in TOOLS:  # a row may outlive its tool by one release
            found[row.name] = Grant(
                TOOLS[row.name],
                row.enabled,
                tuple(row.roles),
                row.asking,
                tuple(row.approvers),
                row.four_eyes,
                timedelta(hours=row.patience_hours),
                row.settings,
            )
    return found


def configure(
    operator: Session,
    tenant_id: UUID,
    name: str,
    actor: str,
    *,
    enabled: bool | None = None,
    roles: Sequence[str] | None = None,
    asking: Asking | None = None,
    approvers: Sequence[str] | None = None,
    four_eyes: bool | None = None,
    patience: timedelta | None = None,
    settings: dict[str, Any] | None = None,
) -> Grant:
    """Change what is given, keep the rest, and put it on the audit record; returns what holds now. For operators.

    Raises PermanentError `unknown-tool`, `bad-tool-settings`.
    """
    tool = find_tool(name)
    # Two operators at once: the second waits and changes what the first has left.
    operator.execute(
        text("select 1 from core.tenants where tenant_id = :tenant for no key update"), {"tenant": tenant_id}
    )
    now = grants(operator, tenant_id)[name]
    grant = replace(
        now,
        enabled=now.enabled if enabled is None else enabled,
        roles=now.roles if roles is None else _known(roles, ROLES),
        asking=now.asking if asking is None else asking,
        approvers=now.approvers if approvers is None else _known(approvers, (*ROLES, ASKER)),
        four_eyes=now.four_eyes if four_eyes is None else four_eyes,
        patience=now.patience if patience is None else patience,
        settings=now.settings if settings is None else checked_settings(tool, settings),
    )
    if not grant.approvers:
        raise _bad("somebody must be able to approve")
    hours = int(grant.patience.total_seconds() // 3600)
    if not 1 <= hours <= 8760:
        raise _bad("an approval waits one hour to one year")
    operator.execute(
        text(
            "insert into core.tenant_tools as t (tenant_id, name, enabled, roles, asking, approvers, four_eyes, "
            "patience_hours, settings) values (:tenant, :name, :enabled, cast(:roles as text[]), :asking, "
            "cast(:approvers as text[]), :four_eyes, :hours, cast(:settings as jsonb)) "
            "on conflict (tenant_id, name) do update set enabled = excluded.enabled, roles = excluded.roles, "
            "asking = excluded.asking, approvers = excluded.approvers, four_eyes = excluded.four_eyes, "
            "patience_hours = excluded.patience_hours, settings = excluded.settings, updated_at = now()"
        ),
        {
            "tenant": tenant_id,
            "name": name,
            "enabled": grant.enabled,
            "roles": array_literal(grant.roles),
            "asking": grant.asking,
            "approvers": array_literal(grant.approvers),
            "four_eyes": grant.four_eyes,
            "hours": hours,
            "settings": json.dumps(grant.settings),
        },
    )
    record(
        operator,
        actor=actor,
        action="tool-configured",
        subject=name,
        tenant_id=tenant_id,
        enabled=grant.enabled,
        roles=grant.roles,
        asking=grant.asking,
        approvers=grant.approvers,
        four_eyes=grant.four_eyes,
        hours=hours,
        # Where the tool may go is what an auditor asks for; names of secrets are in it, values never.
        settings=grant.settings,
    )
    return grant


def checked_settings(tool: Tool, given: dict[str, Any]) -> dict[str, Any]:
    """A tool's own settings in their stored form. Raises PermanentError `bad-tool-settings`."""
    if tool.name != "http_request":
        if given:
            raise _bad(f"{tool.name} has no settings of its own")
        return {}
    try:
        return HttpSettings.model_validate(given).model_dump(mode="json")
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False)
        raise _bad("; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems)[:600]) from None


def _known(given: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    if strange := [role for role in given if role not in known]:
        raise _bad(f"{', '.join(strange)} is not one of {', '.join(known)}")
    return tuple(dict.fromkeys(given))


def _bad(detail: str) -> PermanentError:
    return PermanentError("bad-tool-settings", f"The tool cannot be set so: {detail}.", "See docs/tools.md.")
