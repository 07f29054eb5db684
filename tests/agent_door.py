"""The agent's door before a real database, with a scripted chat model behind the real LiteLLM proxy."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import functions_framework
import pytest
from sqlalchemy import text

from local.bus.tokens import Tokens
from shared import doors
from shared.conversations.runs import Run, RunEvent, events_after, read_run
from shared.conversations.runs import ask as put_question
from shared.database import operator_session, tenant_session
from shared.events import AnswerQuestion
from shared.fakes import FakeBus
from shared.money.prices import set_price
from shared.retrieval.spaces import activate_first, ensure_space
from shared.services import services
from shared.settings import get_settings
from shared.tenants.directory import Principal, create_tenant, memberships
from tests.chaos.wire import ACCOUNT, AUDIENCE, ISSUER
from tests.integration.test_answering import HOLIDAY, index
from tests.scripted_model import CHAT, DIMENSION, EMBEDDINGS, KEY, Script, behind_proxy, serving

_create: Any = functions_framework.create_app  # it has no types
ROOT = Path(__file__).parents[1]
QUESTION = "Wie viele Arbeitstage Urlaub haben alle Beschäftigten?"
TRAVEL = "Reisekosten erstattet die Buchhaltung innerhalb von 14 Tagen nach Eingang der Belege."
GOOD = "„Alle Beschäftigten haben Anspruch auf 30 Arbeitstage Urlaub.“ [1]"
PRICE = Decimal(1_000_000)
"""A euro a token, so that what was booked can be compared to the token."""


@dataclass
class Agent:
    """The door, the model behind it and a tenant; `deliver` is what the bus does."""

    script: Script
    tenant: Principal
    app: Any
    bearer: str
    bus: FakeBus

    def ask(self, question: str = QUESTION, conversation: UUID | None = None) -> UUID:
        """Put a question; returns the run."""
        with tenant_session(self.tenant.tenant_id) as session:
            return put_question(session, self.tenant, question, conversation_id=conversation)

    def deliver(self, run_id: UUID) -> int:
        """Push the command to answer; returns the status of the door."""
        command = AnswerQuestion(tenant_id=self.tenant.tenant_id, run_id=run_id)
        data = base64.b64encode(command.data()).decode()
        body = {
            "message": {"data": data, "attributes": command.attributes(), "messageId": uuid4().hex},
            "subscription": "projects/test/subscriptions/agent",
        }
        with self.app.test_client() as client:
            status: int = client.post("/", json=body, headers={"Authorization": self.bearer}).status_code
        return status

    def run(self, run_id: UUID) -> tuple[Run, list[RunEvent]]:
        """The run and its events, which are numbered without a gap."""
        with tenant_session(self.tenant.tenant_id) as session:
            run = read_run(session, self.tenant, run_id)
            events = events_after(session, self.tenant, run_id, 0)
        assert run is not None
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        return run, events

    def answer(self, question: str = QUESTION) -> tuple[Run, list[RunEvent]]:
        """Put a question and have it answered."""
        run_id = self.ask(question)
        assert self.deliver(run_id) == 204
        return self.run(run_id)

    def money(self) -> tuple[int, int, int, int]:
        """Tokens in and out, EUR booked and EUR reserved of the tenant; at a euro a token all are whole."""
        with operator_session() as operator:
            row = operator.execute(
                text(
                    "select coalesce(sum(tokens), 0), coalesce(sum(output_tokens), 0), coalesce(sum(cost_eur), 0), "
                    "coalesce(sum(reserved_eur), 0) from core.ledger where tenant_id = :t"
                ),
                {"t": self.tenant.tenant_id},
            ).one()
        assert all(value == int(value) for value in row)
        return int(row[0]), int(row[1]), int(row[2]), int(row[3])


@dataclass(frozen=True)
class Door:
    """The wired door: the model behind it, the WSGI application and the bus's token."""

    script: Script
    app: Any
    bearer: str

    def agent(self, bus: FakeBus) -> Agent:
        """The agent with a fresh tenant that has two documents, and models with prices."""
        self.script.fresh()
        slug = f"t-{uuid4().hex[:12]}"
        email = f"admin@{slug}.example"
        with operator_session() as operator:
            made = create_tenant(operator, slug, slug.title(), email)
            activate_first(operator, made.tenant_id, ensure_space(operator, EMBEDDINGS, DIMENSION))
            operator.execute(text("delete from core.provider_gates"))
            for model in (CHAT, EMBEDDINGS):
                set_price(operator, model, PRICE, datetime.now(UTC) - timedelta(days=1), output=PRICE)
        tenant = memberships(email)[0]
        index(tenant, "urlaub", HOLIDAY)
        index(tenant, "reise", TRAVEL)
        return Agent(self.script, tenant, self.app, self.bearer, bus)


@contextmanager
def open_door(folder: Path) -> Iterator[Door]:
    """Model, proxy and door; the process points at a migrated database (tests/conftest.py)."""
    tokens = Tokens(folder, ISSUER, ACCOUNT)
    with (
        serving(Script(keys=tokens.jwks())) as script,
        behind_proxy(script, folder) as url,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {
            "LITELLM_URL": url,
            "LITELLM_MASTER_KEY": KEY,
            "CHAT_MODEL": CHAT,
            "CHAT_ABILITIES": "quotes",
            "EMBEDDINGS_MODEL": EMBEDDINGS,
            "EMBEDDINGS_DIM": str(DIMENSION),
            "PUSH_ISSUER": ISSUER,
            "PUSH_JWKS_URL": f"{script.url}/jwks",
            "PUSH_AUDIENCE": AUDIENCE,
            "PUSH_SERVICE_ACCOUNT": ACCOUNT,
        }.items():
            patch.setenv(name, value)
        get_settings.cache_clear()
        services.cache_clear()
        doors._verifier.cache_clear()  # another module's door has had other keys
        source = str(ROOT / "functions/agent/main.py")
        app = _create(target="agent", source=source, signature_type="http")
        # The first answer takes the proxy seconds: what it imports late must not look like a silent provider.
        assert list(services().models.chat([{"role": "user", "content": "Guten Tag"}]))
        try:
            yield Door(script, app, tokens.bearer(f"{AUDIENCE}/"))
        finally:
            getattr(services().models, "close", lambda: None)()
            with operator_session() as operator:
                operator.execute(text("delete from core.prices where model in (:a, :b)"), {"a": CHAT, "b": EMBEDDINGS})
    get_settings.cache_clear()
    services.cache_clear()
    doors._verifier.cache_clear()
