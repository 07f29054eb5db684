"""`noesis seed`: demo tenants with a few documents in German and English, submitted like any others."""

from __future__ import annotations

import base64
from pathlib import Path

import click

from cli.screen import screen
from cli.submitting import SOURCE, publish_all, wait_for
from shared.database import operator_session
from shared.documents.intake import document_id_of
from shared.errors import PermanentError
from shared.events import DocumentSubmitted
from shared.retrieval.spaces import activate_first, space_for_new_tenants
from shared.settings import get_settings
from shared.tenants.directory import create_tenant

DEMO = Path(__file__).parent / "demo"
NAMES = {"nordwind": "Nordwind GmbH", "alpenblick": "Alpenblick Kliniken", "harbour": "Harbour Pumps Ltd"}
VERSION = 1
"""The source version of the demo documents: seeding again changes nothing; raise it with their text."""


@click.command()
@click.option("--wait/--no-wait", default=True, help="Wait until the documents are searchable.")
def seed(wait: bool) -> None:
    """Make three demo tenants with documents; idempotent, and refused in prod."""
    settings = get_settings()
    if settings.noesis_stage == "prod":
        raise PermanentError("seed-refused", "Demo data does not belong in prod.", "Use staging or a laptop.")
    for slug, name in NAMES.items():
        with operator_session() as session:
            tenant = create_tenant(session, slug, name, f"admin@{slug}.example")
            space = space_for_new_tenants(session, settings)
            activate_first(session, tenant.tenant_id, space)
        events = [
            DocumentSubmitted(
                tenant_id=tenant.tenant_id,
                external_id=f"demo/{path.name}",
                source_version=VERSION,
                file_name=path.name,
                content=base64.b64encode(path.read_bytes()).decode(),
            )
            for path in sorted((DEMO / slug).iterdir())
        ]
        publish_all(events)
        if wait:
            versions = {document_id_of(tenant.tenant_id, SOURCE, e.external_id): VERSION for e in events}
            ended = wait_for(tenant.tenant_id, versions, 300, screen(stderr=True))
            failed = [row.external_id for row in ended.values() if row.state != "searchable"]
            if len(ended) < len(versions) or failed:
                raise click.ClickException(f"{slug}: {len(versions) - len(ended)} not yet, failed: {failed}")
        click.echo(f"{slug}: {len(events)} documents, sign in as admin@{slug}.example")
