"""`noesis submit`: publish documents like any upstream system, with Google's own client."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from uuid import UUID

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cli.context import chosen_tenant, collection_option, tenant_option
from cli.screen import screen
from shared.database import tenant_session
from shared.documents.intake import document_id_of
from shared.documents.reading import DocumentRow, outcomes
from shared.documents.tombstones import is_entombed
from shared.events import INLINE_LIMIT, DocumentSubmitted
from shared.services import Services, services
from shared.tenants.directory import require_source

SOURCE = "upstream"

GONE = "It was deleted for good in this version. Change the file, and submit it as a new document."
DELETED = "It is deleted here. Bring it back with `noesis documents restore`, or change the file and submit it again."

CONFIRMATION = 60.0
"""Seconds to wait for the bus to confirm one of many messages."""


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@tenant_option
@collection_option
@click.option(
    "--ids",
    default="path",
    show_default=True,
    type=click.Choice(["path", "name"]),
    help="What a document is known by; `name`: the file's without its ending, as golden sets name documents.",
)
@click.option("--wait/--no-wait", default=True, help="Wait until they are searchable or failed.")
@click.option(
    "--timeout", default=600, show_default=True, type=click.IntRange(0, 86_400), help="Longest wait in seconds."
)
def submit(paths: tuple[Path, ...], tenant: str, collection: str, ids: str, wait: bool, timeout: int) -> None:
    """Publish files (folders: all files below) to the platform's document topic.

    The path is the document's id (--ids) and the time of its last change its version, so an unchanged file sent again
    changes nothing. Files over 256 KiB go to the object store first.
    """
    chosen = chosen_tenant(tenant)
    named = {path: path.stem if ids == "name" else str(path.absolute())[-512:] for path in files_of(paths)}
    if len(set(named.values())) < len(named):
        raise click.BadParameter("two of the files have the same name", param_hint="--ids")
    if not named:
        raise click.ClickException("There is no file to submit (hidden ones are left out).")
    events = [submission(chosen.tenant_id, path, name, collection, services()) for path, name in named.items()]
    console = screen(stderr=True)
    gone = deleted_for_good(chosen.tenant_id, events)
    for event in gone:
        said = f"{event.external_id}: {GONE}"
        console.print(f"[red]failed[/red] {escape(said)}")
    lost = {event.external_id for event in gone}
    events = [event for event in events if event.external_id not in lost]
    publish_all(events)
    if not wait:
        console.print(f"{len(events)} documents published.")
        raise click.exceptions.Exit(1 if gone else 0)
    versions = {document_id_of(chosen.tenant_id, SOURCE, e.external_id): e.version_number() for e in events}
    ended = wait_for(chosen.tenant_id, versions, timeout, console)
    failed = [why for row in ended.values() if (why := why_not(row)) is not None]
    for why in failed:
        console.print(f"[red]failed[/red] {escape(why)}")
    late, bad = len(versions) - len(ended), len(failed) + len(gone)
    console.print(f"{len(ended) - len(failed)} searchable, {bad} failed" + (f", {late} not yet" if late else ""))
    if late:
        console.print("`noesis documents` says what they wait for.")
    if bad or late:
        raise click.exceptions.Exit(1)


def deleted_for_good(tenant_id: UUID, events: Sequence[DocumentSubmitted]) -> list[DocumentSubmitted]:
    """Those of which nothing would ever be heard, because they were purged and did not change since.

    Raises PermanentError `source-not-bound` when none of them would be taken.
    """
    with tenant_session(tenant_id) as session:
        require_source(session, tenant_id, SOURCE)
        return [
            event
            for event in events
            if is_entombed(session, tenant_id, SOURCE, event.external_id, event.version_number(), event.occurred_at)
        ]


def why_not(row: DocumentRow) -> str | None:
    """Why what was submitted does not answer questions, for people; None when it does."""
    if row.state == "deleted":
        return f"{row.external_id}: {DELETED}"
    if row.state == "failed" or (row.reason and row.state == "searchable"):
        return f"{row.external_id}: {row.message} {row.next_action or ''} ({row.reason})"
    return None


def files_of(paths: Iterable[Path]) -> list[Path]:
    """The files meant by paths: themselves, or everything below a folder that is not hidden."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.is_file())
            found += sorted(p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts))
        else:
            found.append(path)
    return found


def submission(tenant_id: UUID, path: Path, name: str, collection: str, services: Services) -> DocumentSubmitted:
    """The event for a file known by `name`: inline when small, through the object store when not."""
    with path.open("rb") as file:
        data = file.read(INLINE_LIMIT + 1)
        inline = len(data) <= INLINE_LIMIT
        # The operator has the store's own credentials: a resumable upload, and the file is never in memory whole.
        uri = None if inline else services.storage.put_file(tenant_id, file)
    return DocumentSubmitted(
        tenant_id=tenant_id,
        external_id=name,
        source_version=path.stat().st_mtime_ns // 1000,
        file_name=path.name,
        collection=collection,
        content=base64.b64encode(data).decode() if inline else None,
        uri=uri,
    )


def publish_all(events: Iterable[DocumentSubmitted]) -> None:
    """Publish with google-cloud-pubsub and wait for every confirmation."""
    from google.cloud import pubsub_v1  # late: heavy, and only this command needs it

    settings = services().settings
    if settings.pubsub_emulator_host:
        os.environ["PUBSUB_EMULATOR_HOST"] = settings.pubsub_emulator_host
    publisher = pubsub_v1.PublisherClient()
    topic = publisher.topic_path(settings.google_cloud_project, f"documents-{SOURCE}")
    futures = [publisher.publish(topic, event.data(), **event.attributes()) for event in events]
    for future in futures:
        future.result(timeout=CONFIRMATION)


def wait_for(tenant_id: UUID, versions: dict[UUID, int], timeout: float, console: Console) -> dict[UUID, DocumentRow]:
    """Poll until every document ended in `searchable`, `failed` or `deleted`; returns those that did."""
    deadline = time.monotonic() + timeout
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    ended: dict[UUID, DocumentRow] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("searchable", total=len(versions))
        while len(ended) < len(versions) and time.monotonic() < deadline:
            open_ = {k: v for k, v in versions.items() if k not in ended}
            with tenant_session(tenant_id) as session:
                found = outcomes(session, tenant_id, open_)
            for document_id, row in found.items():
                if row.state in ("failed", "deleted") or (row.state == "searchable" and row.pending == 0):
                    ended[document_id] = row
            progress.update(task, completed=len(ended))
            if len(ended) < len(versions):
                time.sleep(0.2)
    return ended
