"""What commands share: which tenant is meant, and who acts."""

from __future__ import annotations

import getpass
import math
import re
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from uuid import UUID

import click

from shared.database import operator_session
from shared.errors import PermanentError
from shared.events import COLLECTION_NAME
from shared.retrieval.paying import Payer
from shared.services import services
from shared.tenants.directory import Principal, Tenant, find_tenant, list_tenants, memberships

tenant_option = click.option("--tenant", "-t", default="", help="Slug or id of the tenant; not needed if there is one.")


def _collection(_context: click.Context, _parameter: click.Parameter, given: str) -> str:
    if not re.fullmatch(COLLECTION_NAME, given):
        raise click.BadParameter("a collection is lower-case letters, digits and hyphens, at most 63")
    return given


collection_option = click.option(
    "--collection", default="default", show_default=True, callback=_collection, help="Collection the documents go to."
)


def chosen_tenant(reference: str) -> Tenant:
    """The tenant named on the command line, or the only one, or `demo`."""
    with operator_session() as session:
        if reference:
            return find_tenant(session, reference)
        found = list_tenants(session)
    named = found if len(found) == 1 else [tenant for tenant in found if tenant.slug == "demo"]
    if not named:
        raise PermanentError("which-tenant", "There are several tenants.", "Name one with --tenant.")
    return named[0]


def acting_as(tenant: Tenant, email: str) -> Principal:
    """The member an operator acts as. Raises PermanentError when the address is no member of the tenant."""
    for principal in memberships(email):
        if principal.tenant_id == tenant.tenant_id:
            return principal
    raise PermanentError(
        "unknown-member", f"{email} is no member of {tenant.slug}.", "See `noesis tenants members`, or use --as."
    )


def actor() -> str:
    """Who acts, for the audit record."""
    return f"operator:{getpass.getuser()}"


def payer_for(tenant_id: UUID) -> Payer:
    """The tenant pays for what a command asks of models, now."""
    return Payer(tenant_id, services().settings.noesis_stage, services().clock.now())


def hours(given: float) -> timedelta:
    """A span from the command line. Raises BadParameter: “nan” is a number that every range lets pass."""
    if not math.isfinite(given):
        raise click.BadParameter(f"{given} is no number of hours")
    return timedelta(hours=given)


def amount(given: str) -> Decimal:
    """An amount in EUR from the command line. Raises BadParameter."""
    try:
        found = Decimal(given)
    except InvalidOperation:
        found = Decimal(-1)
    if not found.is_finite() or not 0 <= found < 10_000_000:
        raise click.BadParameter(f"{given} is not an amount in EUR")
    return found
