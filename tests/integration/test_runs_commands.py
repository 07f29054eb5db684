"""`noesis runs`: what was asked, how it ended, and what checking the answer found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner

from cli.main import noesis
from functions.agent.answering import answer_question
from shared.services import Services
from shared.tenants.directory import Principal
from tests.integration.agent_material import GOOD, ended, models_of
from tests.integration.test_answering import HOLIDAY, index, put

FOREIGN = "Die Kantine öffnet montags schon am frühen Morgen [1]."


def told(tenant: Principal, *words: str) -> str:
    """What a command says, as one line."""
    arguments = [*words, "-t", tenant.tenant_slug]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(noesis, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    ("draft", "findings", "said"),
    [
        (GOOD, (), ""),
        (f"{GOOD} {FOREIGN}", ("unsupported",), "Checked: 1 × unsupported"),
        (
            f"„Alle Beschäftigten haben Anspruch auf 40 Arbeitstage Urlaub.“ [1] {FOREIGN} {FOREIGN}",
            ("altered-number", "unsupported", "unsupported"),
            "Checked: 1 × altered-number, 2 × unsupported; nothing of the draft was proven, so it was dropped",
        ),
        (
            f"{GOOD} Siehe [hier](https://evil.example/?q=1).",
            ("unmarked", "address-removed"),
            "Checked: 1 × unmarked, 1 × address-removed",
        ),
    ],
    ids=["nothing", "labelled", "dropped", "taken out"],
)
def test_what_checking_found_is_kept_with_the_run(
    tenant: Principal, fake_services: Services, draft: str, findings: tuple[str, ...], said: str
) -> None:
    """In the order of the text, readable with the run for as long as it is kept; `runs show` counts it."""
    index(tenant, "urlaub", HOLIDAY)
    models_of(fake_services).replies = [draft]
    command = put(tenant)
    answer_question(command, fake_services)
    run, events = ended(tenant, command.run_id)
    assert run.findings == findings
    assert run.no_evidence is ("dropped" in said)
    assert events[-1].data == {"no_evidence": run.no_evidence, "findings": list(findings)}
    shown = told(tenant, "runs", "show", str(command.run_id))
    assert said in shown
    assert ("Checked" in shown) is bool(findings)
    assert "answered" in shown
    assert "retrieve › generate › verify" in shown


def test_runs_are_listed_and_anothers_is_unknown(
    make_tenant: Callable[..., Principal], fake_services: Services
) -> None:
    """Newest first, with what came of them; an open one is shown as far as it is."""
    one, two = make_tenant(), make_tenant()
    command = put(one, "Wie lange dauert der Urlaub?")
    assert str(command.run_id) in told(one, "runs", "list")
    assert "queued Wie lange" in told(one, "runs", "list")
    assert "queued" in told(one, "runs", "show", str(command.run_id))
    refused = CliRunner().invoke(noesis, ["runs", "show", str(command.run_id), "-t", two.tenant_slug])
    assert refused.exit_code == 1
    assert "no such question" in refused.output
