"""A tenant's rules of masking: edited by commands, audited without what they hide, followed by models and traces."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from cli.masking import masking
from shared import tracing
from shared.database import operator_session, tenant_session
from shared.errors import PermanentError
from shared.fakes import FakeModels
from shared.privacy import pseudonyms_for
from shared.privacy.editing import MOST_TERMS, add_term, set_rule, set_tracing
from shared.privacy.policies import FRESH_SECONDS, TENANTS, RecentPolicies, forget_policies, policy_of
from shared.retrieval.passages import Passage
from shared.retrieval.paying import Payer
from shared.retrieval.reranking import paid, reordered
from shared.retrieval.spaces import active_space
from shared.tenants.directory import Principal
from shared.tracing import STRICT, JsonLines

TEXT = "Projekt Adler: eva@nordwind.example, 0351 4567890, password=hunter22"


def noesis(tenant: Principal, *arguments: str, fails: bool = False) -> str:
    """Run a command for a tenant; returns what it said."""
    ran = CliRunner().invoke(masking, [*arguments, "--tenant", tenant.tenant_slug])
    assert (ran.exit_code != 0) is fails, ran.output + repr(ran.exception)
    return ran.output


def audited(tenant: Principal) -> list[Any]:
    """What the audit says about the tenant."""
    with operator_session() as session:
        statement = text("select action, details from core.audit where tenant_id = :t order by at")
        return list(session.execute(statement, {"t": tenant.tenant_id}))


def seen_by_model(tenant: Principal) -> str:
    """What a model would get."""
    with tenant_session(tenant.tenant_id) as session:
        return pseudonyms_for(session, tenant.tenant_id).mask(TEXT)


def test_commands_change_what_leaves_and_the_audit_says_so(tenant: Principal) -> None:
    """Kinds, terms and allowed words; the audit names who and what, never the words."""
    assert "eva@" not in seen_by_model(tenant)
    noesis(tenant, "set", "phone", "off", "--for", "model")
    noesis(tenant, "add", "Projekt  ADLER")
    noesis(tenant, "add", "@nordwind.example", "--allow")
    masked = seen_by_model(tenant)
    assert "eva@nordwind.example" in masked
    assert "0351 4567890" in masked
    assert "Adler" not in masked
    assert "hunter22" not in masked
    listed = noesis(tenant, "list")
    assert "projekt adler" in listed
    assert "as it is" in listed
    forget_policies()
    traced = policy_of(tenant.tenant_id).mask(TEXT)
    assert "0351" not in re.sub("⟦[^⟧]*⟧", "", traced)  # the digits of a pseudonym are chance
    assert "eva@nordwind.example" in traced
    noesis(tenant, "remove", "projekt adler")
    noesis(tenant, "set", "phone", "on")
    assert "Adler" in seen_by_model(tenant)
    actions = audited(tenant)
    assert [row.action for row in actions] == [
        "masking-rule-set",
        "masking-term-added",
        "masking-term-added",
        "masking-term-removed",
        "masking-rule-set",
        "masking-rule-set",
    ]
    assert "adler" not in str(actions).lower()


def test_the_test_command_shows_both_views(tenant: Principal) -> None:
    """What a model and what operators would see; the same value has the same digits in both."""
    said = noesis(tenant, "test", TEXT)
    model, traces = said.splitlines()
    assert "eva@" not in said
    assert "hunter22" not in said
    digits = model.partition("⟦EMAIL-")[2][:8]
    assert f"⟦EMAIL-{digits}⟧" in traces


def test_secrets_are_always_masked_in_logs(tenant: Principal) -> None:
    """Nobody can switch them off there; for models a tenant may."""
    noesis(tenant, "set", "password", "off", "--for", "model")
    assert "hunter22" in seen_by_model(tenant)
    noesis(tenant, "set", "password", "off", fails=True)
    with operator_session() as session, pytest.raises(PermanentError, match="always masked"):
        set_rule(session, tenant.tenant_id, "test", "jwt", "traces", masked=False)


@pytest.mark.parametrize("term", ["", " ", "x", "a" * 201, "--"])
def test_terms_that_would_hide_everything_are_refused(term: str, tenant: Principal) -> None:
    """Two to 200 characters with a letter or digit."""
    with operator_session() as session, pytest.raises(PermanentError, match="2 to 200 characters"):
        add_term(session, tenant.tenant_id, "test", "mask", term)


def test_a_list_has_an_end(tenant: Principal) -> None:
    """Every term costs a pass over every text."""
    with operator_session() as session:
        session.execute(
            text(
                "insert into core.masking_terms (tenant_id, list, term) "
                "select :t, 'mask', 'term ' || n from generate_series(1, :n) n"
            ),
            {"t": tenant.tenant_id, "n": MOST_TERMS},
        )
    with operator_session() as session, pytest.raises(PermanentError, match="at most 500"):
        add_term(session, tenant.tenant_id, "test", "mask", "one more")


def test_services_read_rules_and_cannot_write_them(tenant: Principal) -> None:
    """The application role of a hijacked service cannot switch masking off."""
    with pytest.raises(DBAPIError, match="permission denied"), tenant_session(tenant.tenant_id) as session:
        session.execute(
            text("insert into core.masking_rules values (:t, 'email', 'model', false)"), {"t": tenant.tenant_id}
        )


def test_a_tenant_does_not_see_or_follow_anothers_rules(make_tenant: Callable[..., Principal]) -> None:
    """Row-level security holds for words too."""
    one, two = make_tenant(), make_tenant()
    with operator_session() as session:
        add_term(session, one.tenant_id, "test", "mask", "Geheimwort")
    with tenant_session(two.tenant_id) as session:
        assert session.execute(text("select count(*) from core.masking_terms")).scalar_one() == 0
        assert pseudonyms_for(session, one.tenant_id).mask("Geheimwort") == "Geheimwort"


def test_log_lines_follow_the_tenants_rules(tenant: Principal) -> None:
    """Inside a message of the tenant its own terms are hidden, as the pseudonyms that its traces show."""
    with operator_session() as session:
        add_term(session, tenant.tenant_id, "test", "mask", "Projekt Adler")
    forget_policies()
    record = logging.makeLogRecord({"msg": "%s", "args": (TEXT,)})
    with tracing.under(policy_of(tenant.tenant_id)):
        line = JsonLines().format(record)
    assert "Adler" not in line
    assert "⟦TERM-" in line
    assert "⟦EMAIL-" in line
    assert "Adler" in JsonLines().format(record)


def test_rules_are_read_once_a_minute_and_forgotten_tenant_by_tenant() -> None:
    """Few reads, a bounded memory, and a failing database that is told to the caller."""
    now, read = [0.0], []
    policies = RecentPolicies(lambda tenant: (read.append(tenant), STRICT)[1], lambda: now[0])  # type: ignore[func-returns-value]
    first = UUID(int=0)
    for _ in range(3):
        policies.get(first)
    now[0] += FRESH_SECONDS + 1
    policies.get(first)
    assert len(read) == 2
    for number in range(1, TENANTS + 5):
        policies.get(UUID(int=number))
    policies.get(first)
    assert read.count(first) == 3


def test_a_paid_reranker_sees_pseudonyms(tenant: Principal) -> None:
    """The same in question and passage, so that what belongs together is still found together."""
    models = FakeModels()
    passages = [
        Passage(uuid4(), uuid4(), uuid4(), "Akte", f"Zuständig ist {who}@nordwind.example.", (), {}, 0.5, 0.5)
        for who in ("max", "eva")
    ]
    with tenant_session(tenant.tenant_id) as session:
        space = active_space(session, tenant.tenant_id)
    judge = partial(paid, models, Payer(tenant.tenant_id, "dev", datetime.now(UTC)))
    ordered = reordered(models, "other", space, "Was macht eva@nordwind.example?", passages, judge)
    assert "eva@nordwind.example" in ordered[0].text
    assert len(models.reranked) == 2
    assert not [text for text in models.reranked if "nordwind" in text or "⟦EMAIL-" not in text]


def test_tracing_rules_are_set_one_by_one(tenant: Principal) -> None:
    """What is not named stays; `stage` takes a rule away."""
    noesis(tenant, "traces", "--sample", "0.5")
    noesis(tenant, "traces", "--content", "no")
    listed = noesis(tenant, "list")
    assert "Traces kept: 50%; with masked texts: no." in listed
    noesis(tenant, "traces", "--sample", "stage")
    assert "100% as the stage; with masked texts: no." in noesis(tenant, "list")
    noesis(tenant, "traces", "--sample", "lots", fails=True)
    noesis(tenant, "traces", fails=True)
    with operator_session() as session, pytest.raises(PermanentError, match="between 0 and 1"):
        set_tracing(session, tenant.tenant_id, "test", sample_rate=1.5)
