"""`noesis tenants export|verify-export|erase|verify-certificate`: a tenant's data leave, and it can be proven."""

from __future__ import annotations

import getpass
import json
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import click
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from cli.screen import screen
from shared.database import operator_session
from shared.errors import PermanentError, SettingsError
from shared.services import services
from shared.settings import get_settings
from shared.tenants import catalogue
from shared.tenants.certificates import check_signature
from shared.tenants.directory import find_tenant
from shared.tenants.erasure import Erasure, close_tenant, erase_tenant, find_erasure
from shared.tenants.export import export_tenant, verify_export


@click.command()
@click.argument("slug")
@click.option("--to", "target", required=True, type=click.Path(path_type=Path, dir_okay=False), help="A ZIP file.")
@click.option("--vectors/--no-vectors", default=True, help="Vectors can be made again from the text.")
def export(slug: str, target: Path, vectors: bool) -> None:
    """Write everything of a tenant to a file: rows as JSON Lines, the documents, and a manifest with their SHA-256."""
    with operator_session() as session:
        tenant = find_tenant(session, slug)
    steps = export_tenant(tenant.tenant_id, services().storage, target, actor=operator(), vectors=vectors)
    with screen(stderr=True).status("exporting") as status:
        for name, amount in steps:
            status.update(f"exporting {name}: {amount}")
    manifest, digest = verify_export(target)
    click.echo(f"{target}: {len(manifest['members'])} members, manifest SHA-256 {digest}")
    if lost := manifest["missing_blobs"]:
        click.echo(f"{len(lost)} blobs are not in the object store; the manifest lists them.", err=True)


@click.command("verify-export")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def verify_export_(file: Path) -> None:
    """Check an export against its manifest."""
    manifest, digest = verify_export(file)
    rows = sum(member.get("rows", 0) for member in manifest["members"])
    blobs = sum(member["name"].startswith("blobs/") for member in manifest["members"])
    click.echo(f"Whole and unchanged: {manifest['slug']}, made at {manifest['made_at']}, {rows} rows, {blobs} blobs.")
    click.echo(f"Manifest SHA-256 {digest}")


def operator() -> str:
    """Who acts, for the record."""
    return f"operator:{getpass.getuser()}"


@click.command()
@click.argument("slug")
@click.option("--confirm", required=True, help="The slug again: there is no way back.")
@click.option("--certificate", type=click.Path(path_type=Path, dir_okay=False), help="Write it there; default: print.")
def erase(slug: str, confirm: str, certificate: Path | None) -> None:
    """Erase a tenant: close it, delete every row and blob, prove it, and sign a certificate.

    Killed or failed in the middle, the same command goes on. For a tenant that is erased already it prints the
    certificate again. Make an export first if anybody may want one.
    """
    if confirm != slug:
        raise click.BadParameter("it must be the slug of the tenant", param_hint="--confirm")
    settings = get_settings()
    if settings.secret_key is None:
        raise SettingsError("SECRET_KEY is not set: without it the certificate could not be signed.")
    erasure = _closed(slug)
    if erasure.certificate is None:
        owner = settings.migration_database_url
        console = screen(stderr=True)
        steps = erase_tenant(
            erasure.tenant_id,
            services().storage,
            secret=settings.secret_key.get_secret_value(),
            stage=settings.noesis_stage,
            owner_url=owner.get_secret_value() if owner else "",
        )
        with console.status("erasing") as status:
            for what, done in steps:
                status.update(f"erasing {what}: {done}")
    with operator_session() as session:
        ended = find_erasure(session, str(erasure.tenant_id))
    assert ended is not None
    printed = json.dumps(ended.certificate, indent=2, ensure_ascii=False) + "\n"
    if certificate is None:
        sys.stdout.write(printed)
    else:
        certificate.write_text(printed, encoding="utf-8")
        click.echo(f"{slug} is erased. Certificate: {certificate}", err=True)


def _closed(slug: str) -> Erasure:
    """The tenant's erasure, begun now if it was not; a live tenant goes before an erased one of the same slug."""
    with operator_session() as session:
        try:
            tenant = find_tenant(session, slug)
        except PermanentError:
            known = find_erasure(session, slug)
            if known is None:
                raise
            return known
        close_tenant(session, tenant.tenant_id, tenant.slug, operator())
        begun = find_erasure(session, str(tenant.tenant_id))
    assert begun is not None
    return begun


@click.command("verify-certificate")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--signature-only", is_flag=True, help="Do not look into the database and the object store.")
def verify_certificate(file: Path, signature_only: bool) -> None:
    """Check a certificate: its signature, and that the tenant's id is still nowhere to be found."""
    settings = get_settings()
    if settings.secret_key is None:
        raise SettingsError("SECRET_KEY is not set: set the one that signed the certificate.")
    try:
        certificate: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        certificate = None
    if not isinstance(certificate, dict):
        raise PermanentError("not-a-certificate", "This is no certificate of an erasure by noesis2.")
    check_signature(certificate, settings.secret_key.get_secret_value())
    click.echo(f"Signed here; {certificate['slug']} was erased at {certificate['erased_at']}.")
    if signature_only:
        return
    found = still_found(certificate)
    if found:
        raise PermanentError("tenant-found", f"The tenant is to be found again: {', '.join(found)}.")


def still_found(certificate: dict[str, Any]) -> list[str]:
    """Where the tenant's id is today; says so and finds nothing when the database does not answer."""
    tenant_id = UUID(certificate["tenant_id"])
    try:
        with operator_session() as session:
            proof = catalogue.search(session, tenant_id)
            tombstone = session.execute(
                text("select 1 from core.erasures where tenant_id = :tenant and state = 'erased'"),
                {"tenant": tenant_id},
            ).scalar()
    except SQLAlchemyError as error:
        click.echo(f"The database does not answer ({type(error).__name__}): only the signature was checked.", err=True)
        return []
    blobs = sum(1 for _ in services().storage.blobs(tenant_id))
    found = [f"{place} {count}" for place, count in {**proof.own, "blobs": blobs}.items() if count]
    if tombstone is None:
        found.append("its tombstone is missing")
    if not found:
        click.echo(f"{proof.searched} columns and the object store searched: nothing of the tenant is there.")
    return found
