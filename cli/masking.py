"""`noesis masking`: what of a tenant's texts is hidden from models, traces and logs, and how much is traced."""

from __future__ import annotations

import getpass
import sys
from typing import cast

import click
from rich.markup import escape

from cli.context import chosen_tenant, tenant_option
from cli.screen import screen, table_of
from shared.database import operator_session
from shared.masking import KINDS, SECRETS
from shared.privacy.editing import List, add_term, remove_term, set_rule, set_tracing
from shared.privacy.policies import policy_from
from shared.privacy.pseudonyms import Pseudonyms, tenant_key
from shared.privacy.rules import PURPOSES, Purpose, rules_of
from shared.settings import get_settings
from shared.tracing.export import STAGE_RATES

list_option = click.option(
    "--allow", "which", flag_value="allow", default="mask", help="The list of what is never masked; default: what is."
)


@click.group()
def masking() -> None:
    """What is hidden from models, traces and logs; changes are audited."""


@masking.command("list")
@tenant_option
def list_(tenant: str) -> None:
    """The rules of a tenant."""
    chosen = chosen_tenant(tenant)
    with operator_session() as session:
        rules = rules_of(session, chosen.tenant_id)
    table = table_of("kind", "for models", "in traces and logs")
    for kind in KINDS:
        shown = ["masked" if kind in rules.kinds(purpose) else "as it is" for purpose in PURPOSES]
        table.add_row(kind, *shown[:1], "always masked" if kind in SECRETS else shown[1])
    console = screen()
    console.print(table)
    console.print(f"Masked terms: {escape(', '.join(rules.words.terms)) or 'none'}.")
    console.print(f"Never masked: {escape(', '.join(sorted(rules.words.allowed))) or 'nothing'}.")
    stage = get_settings().noesis_stage
    rate = f"{STAGE_RATES[stage]:.0%} as the stage" if rules.sample_rate is None else f"{rules.sample_rate:.0%}"
    content = "as the stage" if rules.content is None else "yes" if rules.content else "no"
    console.print(f"Traces kept: {rate}; with masked texts: {content}.")


@masking.command("set")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("state", type=click.Choice(["on", "off"]))
@click.option("--for", "purposes", multiple=True, type=click.Choice(PURPOSES), help="Default: both.")
@tenant_option
def set_(kind: str, state: str, purposes: tuple[str, ...], tenant: str) -> None:
    """Mask a KIND or leave it as it is, for models, for traces and logs, or both."""
    chosen = chosen_tenant(tenant)
    with operator_session() as session:
        for purpose in purposes or PURPOSES:
            set_rule(session, chosen.tenant_id, _actor(), kind, cast(Purpose, purpose), masked=state == "on")
    click.echo(f"{chosen.slug}: {kind} {state} for {' and '.join(purposes or PURPOSES)}.")


@masking.command()
@click.argument("term")
@list_option
@tenant_option
def add(term: str, which: str, tenant: str) -> None:
    """Mask a literal TERM wherever it stands as a whole word; --allow: never mask it ("@example.org": a domain)."""
    chosen = chosen_tenant(tenant)
    with operator_session() as session:
        add_term(session, chosen.tenant_id, _actor(), cast(List, which), term)
    click.echo(f"{chosen.slug}: the {which} list has it.")


@masking.command()
@click.argument("term")
@list_option
@tenant_option
def remove(term: str, which: str, tenant: str) -> None:
    """Take a TERM off a list."""
    chosen = chosen_tenant(tenant)
    with operator_session() as session:
        remove_term(session, chosen.tenant_id, _actor(), cast(List, which), term)
    click.echo(f"{chosen.slug}: the {which} list no longer has it.")


@masking.command()
@click.option("--sample", help="The part of traces that is kept, 0 to 1, or `stage`.")
@click.option("--content", type=click.Choice(["yes", "no", "stage"]), help="Whether traces carry masked texts.")
@tenant_option
def traces(sample: str | None, content: str | None, tenant: str) -> None:
    """Say which part of a tenant's traces is kept and whether they carry texts."""
    if sample is None and content is None:
        raise click.UsageError("Give --sample or --content.")
    chosen = chosen_tenant(tenant)
    with operator_session() as session:
        set_tracing(
            session,
            chosen.tenant_id,
            _actor(),
            sample_rate="unchanged" if sample is None else _rate(sample),
            content="unchanged" if content is None else {"yes": True, "no": False, "stage": None}[content],
        )
    click.echo(f"{chosen.slug}: set; running services follow within a minute.")


@masking.command()
@click.argument("text", required=False)
@tenant_option
def test(text: str | None, tenant: str) -> None:
    """Show what a model, and what traces and logs, would see of TEXT (or of standard input)."""
    chosen = chosen_tenant(tenant)
    given = sys.stdin.read() if text is None else text
    with operator_session() as session:
        rules = rules_of(session, chosen.tenant_id)
    key = tenant_key(get_settings(), chosen.tenant_id)
    pseudonyms = Pseudonyms(key, rules)
    click.echo(f"model   {pseudonyms.mask(given)}")
    click.echo(f"traces  {policy_from(rules, key).mask(given)}")


def _rate(given: str) -> float | None:
    if given == "stage":
        return None
    try:
        return float(given)
    except ValueError:
        raise click.BadParameter(f"{given} is no number between 0 and 1") from None


def _actor() -> str:
    return f"operator:{getpass.getuser()}"
