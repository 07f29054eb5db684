"""Scripted answers, and what a run has left behind, for tests of the agent."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import text

from shared.completions import ToolCall
from shared.conversations.runs import Run, RunEvent, events_after, read_run
from shared.database import operator_session, tenant_session
from shared.fakes import FakeModels
from shared.services import Services
from shared.tenants.directory import Principal

GOOD = "„Alle Beschäftigten haben Anspruch auf 30 Arbeitstage Urlaub.“ [1]"


def models_of(services: Services) -> FakeModels:
    assert isinstance(services.models, FakeModels)
    return services.models


def ended(tenant: Principal, run_id: UUID) -> tuple[Run, list[RunEvent]]:
    with tenant_session(tenant.tenant_id) as session:
        run = read_run(session, tenant, run_id)
        events = events_after(session, tenant, run_id, 0)
    assert run is not None
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return run, events


def calls(*wanted: tuple[str, dict[str, Any]]) -> list[ToolCall]:
    return [ToolCall(f"c{n}", name, arguments) for n, (name, arguments) in enumerate(wanted)]


def called(tenant: Principal, run_id: UUID) -> list[tuple[str, int, int, Decimal]]:
    with tenant_session(tenant.tenant_id) as session:
        rows = session.execute(
            text(
                "select call_key, input_tokens, output_tokens, cost_eur from core.model_calls where run_id = :r "
                "order by created_at"
            ),
            {"r": run_id},
        )
        return [tuple(row) for row in rows]


def booked(tenant: Principal, run_id: UUID) -> Any:
    """Tokens in and out, EUR, and what is still reserved, of a run in the ledger."""
    with tenant_session(tenant.tenant_id) as session:
        row = session.execute(
            text(
                "select sum(tokens)::int, sum(output_tokens)::int, sum(cost_eur), sum(reserved_eur) from core.ledger "
                "where run_id = :r"
            ),
            {"r": run_id},
        ).one()
    return tuple(row)


def set_floor(tenant: Principal, floor: float | None) -> None:
    with operator_session() as session:
        session.execute(text("update rag.vector_spaces set evidence_floor = :f where model = 'fake'"), {"f": floor})
