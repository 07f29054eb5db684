"""Which traces leave, and what of their content: the sample, the errors outside of it, the rules of a tenant."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from functions.ingest import main as ingest
from shared import tracing
from shared.database import operator_session
from shared.doors import Delivery, handles
from shared.errors import PermanentError, Postponed
from shared.events import EmbedChunks, new_traceparent
from shared.fakes import FakeBus
from shared.privacy.editing import set_tracing
from shared.privacy.policies import forget_policies, policy_of
from shared.settings import Settings, load_settings
from shared.tenants.directory import Principal
from shared.tracing.export import Exporter, configure_tracing
from tests.integration.tracing.tracing_material import push, submitted, thin
from tests.otlp_receiver import Receiver


@pytest.mark.parametrize(("stage", "rate"), [("dev", 1.0), ("staging", 0.25), ("prod", 0.05)])
def test_every_process_keeps_the_same_part_of_the_traces(
    stage: str, rate: float, collector: Receiver, monkeypatch: pytest.MonkeyPatch, database: object
) -> None:
    """The trace id alone decides, so two processes agree on every trace, and the part is the stage's."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("NOESIS_STAGE", stage)
    sinks: list[Any] = []
    monkeypatch.setattr("shared.tracing.export.use_sink", sinks.append)
    for _ in range(2):
        configure_tracing(load_settings())
    ids = [new_traceparent()[3:35] for _ in range(20_000)]
    one, two = ({trace for trace in ids if sink.is_sampled(trace, None)} for sink in sinks)
    assert one == two
    assert abs(len(one) / len(ids) - rate) < 0.012
    assert sinks[0].content is (stage != "prod")


def unsampled(exporter: Exporter) -> str:
    """A traceparent outside of the sample."""
    while True:
        traceparent = new_traceparent()
        if not exporter.is_sampled(traceparent[3:35], None):
            return traceparent


def test_a_trace_that_saw_an_error_is_kept_whole(
    traced: Settings, collector: Receiver, tenant: Principal, bus: FakeBus
) -> None:
    """Outside of the sample nothing leaves; with an error in it every span of this process does."""
    exporter = thin(collector)
    assert push(ingest.ingest, submitted(tenant, traceparent=unsampled(exporter)), "/sources/upstream") == 204
    assert collector.spans == []
    broken = submitted(tenant, text=" ", traceparent=unsampled(exporter))
    assert push(ingest.ingest, broken, "/sources/upstream") == 204
    failed = collector.named("handle document-submitted")
    assert failed.is_error
    assert failed.attributes["error.type"] == "empty-document"
    assert failed.attributes["langfuse.observation.level"] == "ERROR"
    assert "parse" in collector.names() or "transaction" in collector.names()


def test_stopping_early_is_no_error(collector: Receiver, tenant: Principal, traced: Settings, bus: FakeBus) -> None:
    """Postponed work is the normal way of a full day; a permanent failure is one."""
    thin(collector)

    def door(error: Exception) -> Any:
        @handles(EmbedChunks)
        def use(message: EmbedChunks, delivery: Delivery) -> None:
            """Stop."""
            with tracing.span("inner"):
                raise error

        return use

    command = EmbedChunks(
        tenant_id=tenant.tenant_id, document_id=uuid4(), version_id=uuid4(), space_id=uuid4(), chunk_ids=(uuid4(),)
    )
    later = Postponed(datetime.now(UTC) + timedelta(minutes=1), "x")
    assert push(door(later), command) == 204
    assert collector.spans == []
    assert push(door(PermanentError("model-refused", "No.", "")), command) == 204
    assert collector.named("handle embed-chunks").attributes["error.type"] == "model-refused"
    assert collector.named("inner").is_error


def test_rules_of_a_tenant_decide_what_leaves(
    traced: Settings, collector: Receiver, make_tenant: Callable[..., Principal], bus: FakeBus
) -> None:
    """One tenant is left out of traces, another one wants no texts in them."""
    silent, mute = make_tenant(), make_tenant()
    with operator_session() as session:
        set_tracing(session, silent.tenant_id, "test", sample_rate=0.0)
        set_tracing(session, mute.tenant_id, "test", content=False)
    forget_policies()
    assert push(ingest.ingest, submitted(silent), "/sources/upstream") == 204
    assert collector.spans == []
    with (
        tracing.under(policy_of(mute.tenant_id)),
        tracing.operation("x", input="Frage", output="Antwort", model="m"),
    ):
        pass
    attributes = collector.named("x").attributes
    assert attributes["gen_ai.request.model"] == "m"
    assert not [name for name in attributes if "input" in name or "output" in name]


def test_what_leaves_is_masked_and_no_exception_tells_its_text(collector: Receiver) -> None:
    """Names, values, lists, errors of spans: everything passes the mask; an exception leaves only its kind."""
    exporter = thin(collector, 1.0)
    exporter.content = True
    canary = "eva.canary@nordwind.example"
    with pytest.raises(ValueError, match="canary"), tracing.operation(f"op {canary}", note=canary, several=[canary]):
        with tracing.span("inner", input={"role": canary}, first=canary, second=canary):
            raise ValueError(f"cannot read {canary}")
    sent = b"".join(collector.bodies)
    assert len(collector.spans) == 2
    assert b"canary" not in sent
    assert all(span.attributes["error.type"] == "ValueError" for span in collector.spans)
