"""`noesis migrate`: bring the schema up to date, or show and try what that would do."""

from __future__ import annotations

import click

from schema.migrate import BRANCHES, sql, upgrade
from shared.errors import SettingsError
from shared.settings import get_settings


@click.command()
@click.option("--dry-run", is_flag=True, help="Print the SQL and try it in a transaction that is rolled back.")
@click.option("--branch", type=click.Choice(["heads", *BRANCHES]), default="heads", show_default=True)
def migrate(dry_run: bool, branch: str) -> None:
    """Apply the migrations of the schema."""
    url = get_settings().migration_database_url
    if url is None:
        raise SettingsError("MIGRATION_DATABASE_URL is not set: migrations run as the role noesis_owner.")
    applied = upgrade(url.get_secret_value(), branch=branch, dry_run=dry_run)
    if dry_run and applied:
        click.echo(sql(branch))
    if not applied:
        click.echo("The schema is up to date.")
    else:
        click.echo(f"{'Would apply' if dry_run else 'Applied'}: {', '.join(applied)}")
