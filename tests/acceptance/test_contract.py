"""What upstream systems, operators and log readers get from the running platform: outcomes, second chances, silence."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.cloud import pubsub_v1
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool

from shared.events import DocumentSubmitted
from tests.acceptance.conftest import ROOT, Platform, eventually

pytestmark = pytest.mark.timeout(400)

MANUAL = "# Pumpe\n\nDie Dichtung der Pumpe wird nach 8.000 Betriebsstunden ersetzt.\n"


@pytest.fixture(scope="module")
def tenant(platform: Platform) -> UUID:
    """A tenant of this module."""
    return platform.tenant("vertrag")


@pytest.fixture(scope="module")
def owner(platform: Platform) -> Iterator[Engine]:
    """The owner of the schema, who can break the database on purpose."""
    engine = create_engine(platform.settings["MIGRATION_DATABASE_URL"], poolclass=NullPool)
    yield engine
    engine.dispose()


def state(platform: Platform, tenant: UUID, external_id: str) -> tuple[str, str | None]:
    """State and reason of a document; `absent` when nobody knows it."""
    rows = platform.rows(
        "select state, reason from rag.documents where tenant_id = :t and external_id = :e", t=tenant, e=external_id
    )
    return (rows[0].state, rows[0].reason) if rows else ("absent", None)


def submission(tenant: UUID, external_id: str, content: str = MANUAL, **fields: Any) -> dict[str, Any]:
    """A message as an upstream system would write it."""
    return {
        "name": "document-submitted",
        "version": 1,
        "event_id": str(uuid4()),
        "tenant_id": str(tenant),
        "external_id": external_id,
        "source_version": 1,
        "content": base64.b64encode(content.encode()).decode(),
        **fields,
    }


def publish(platform: Platform, folder: Path, *messages: dict[str, Any]) -> str:
    """`noesis events publish`."""
    path = folder / f"{uuid4().hex}.json"
    path.write_text(json.dumps(messages))
    return platform.noesis("events", "publish", str(path)).stdout


@contextmanager
def broken(owner: Engine, statement: str, mend: str) -> Iterator[None]:
    """The database as the statement leaves it, mended at the end whatever happens."""
    with owner.begin() as connection:
        connection.execute(text(statement))
    try:
        yield
    finally:
        with owner.begin() as connection:
            connection.execute(text(mend))


def later(platform: Platform) -> Callable[[], None]:
    """Moves the clock of the bus past the next retry."""
    return lambda: platform.advance(310)


# ---- upstream --------------------------------------------------------------------------------------------------------


def test_the_examples_publish_and_hear_what_became_of_it(platform: Platform, tenant: UUID, tmp_path: Path) -> None:
    """Nothing but google-cloud-pubsub on the other side: one document is indexed, one fails with what to do."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("NOESIS_")},
        "PUBSUB_EMULATOR_HOST": platform.settings["PUBSUB_EMULATOR_HOST"],
    }
    project = ("--project", platform.settings["GOOGLE_CLOUD_PROJECT"])
    listening = [*project, "--subscription", f"s-{uuid4().hex[:8]}", "--create", "--count", "2", "--seconds", "120"]
    subscriber = subprocess.Popen(
        [sys.executable, str(ROOT / "examples/subscriber.py"), *listening],
        env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert subscriber.stdout is not None
        assert subscriber.stdout.readline() == "listening\n"
        (tmp_path / "pumpe.md").write_text(MANUAL)
        (tmp_path / "kaputt.pdf").write_bytes(b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog")
        for name in ("pumpe.md", "kaputt.pdf"):
            done = subprocess.run(
                [sys.executable, str(ROOT / "examples/publisher.py"), str(tmp_path / name), *project,
                 "--tenant", str(tenant), "--version", "7"],
                env=environment, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert "is message" in done.stdout
        out, _ = subscriber.communicate(timeout=150)
    finally:
        subscriber.kill()
        subscriber.wait()
    told = {event["external_id"]: event for event in map(json.loads, out.splitlines())}
    assert told["pumpe.md"] == {"name": "document-indexed", "external_id": "pumpe.md", "source_version": 7}
    failed = told["kaputt.pdf"]
    assert (failed["name"], failed["reason"], bool(failed["next_action"])) == ("document-failed", "corrupt", True)


def test_a_message_is_validated_and_published_by_command(platform: Platform, tenant: UUID, tmp_path: Path) -> None:
    """Valid is what becomes searchable; a list is published in one go."""
    path = tmp_path / "messages.json"
    path.write_text(json.dumps([submission(tenant, "a.md"), submission(tenant, "b.md", MANUAL + "\nMehr.")]))
    assert "2: document-submitted: valid" in platform.noesis("events", "validate", str(path)).stdout
    assert "published to documents-upstream" in platform.noesis("events", "publish", str(path)).stdout
    for name in ("a.md", "b.md"):
        eventually(lambda name=name: state(platform, tenant, name)[0] == "searchable", 60, name)  # type: ignore[misc]


# ---- second chances --------------------------------------------------------------------------------------------------


def test_a_refused_source_is_bound_and_its_letter_replayed(platform: Platform, tmp_path: Path) -> None:
    """The message waits in the dead letters until an operator lets its source speak; then it becomes searchable."""
    tenant = platform.tenant("ungebunden")
    with platform.operator.begin() as connection:
        connection.execute(text("delete from core.sources where tenant_id = :t"), {"t": tenant})
    publish(platform, tmp_path, submission(tenant, "wartet.md"))

    def letters() -> list[dict[str, Any]]:
        listed = platform.noesis("dead-letters", "list", "--tenant", "ungebunden", "--json").stdout
        found: list[dict[str, Any]] = json.loads(listed)
        return found

    eventually(letters, 60, "the letter")
    (letter,) = letters()
    assert (letter["kind"], letter["reason"], letter["origin"]) == ("permanent", "source-not-bound", "ingest-upstream")
    assert state(platform, tenant, "wartet.md") == ("absent", None)
    refused = platform.noesis("dead-letters", "replay", letter["letter_id"], check=False)
    assert (refused.returncode, "may not speak" in refused.stdout) == (1, True)
    platform.noesis("tenants", "bind", "upstream", "--tenant", "ungebunden")
    platform.noesis("dead-letters", "replay", letter["letter_id"])
    eventually(lambda: state(platform, tenant, "wartet.md")[0] == "searchable", 60, "searchable after the replay")


def test_what_failed_for_everybody_comes_back_by_itself(
    platform: Platform, tenant: UUID, owner: Engine, tmp_path: Path
) -> None:
    """Every delivery of a batch fails, its document says so; the cause is mended, and the five-minute check, from the
    real schedule, brings it to searchable without anybody."""
    with broken(owner, "alter table rag.embeddings rename to hidden", "alter table rag.hidden rename to embeddings"):
        publish(platform, tmp_path, submission(tenant, "sturm.md", MANUAL + "\nSturm.\n"))

        def failed() -> bool:
            return state(platform, tenant, "sturm.md") == ("failed", "attempts-exhausted")

        eventually(failed, 150, "all deliveries used up", later(platform))

    def kept() -> list[Any]:
        return platform.rows(
            "select * from core.dead_letters where tenant_id = :t and reason = 'attempts-exhausted'", t=tenant
        )

    eventually(kept, 30, "archived")
    (letter,) = kept()
    assert (letter[5], letter.attempts) == ("transient", 5)
    with platform.operator.begin() as connection:  # the database's clock cannot be moved, the letter can be older
        connection.execute(text("update core.dead_letters set archived_at = archived_at - interval '10 minutes'"))
    searchable = lambda: state(platform, tenant, "sturm.md") == ("searchable", None)  # noqa: E731
    eventually(searchable, 120, "searchable by itself", later(platform))
    shown = json.loads(platform.noesis("dead-letters", "show", str(letter.letter_id)).stdout)
    assert (shown["replays"], shown["automatic_replays"]) == (1, 1)
    assert "dead-letter-check" in platform.noesis("jobs", "list").stdout


def test_a_job_runs_by_hand_in_a_process_of_its_own(platform: Platform) -> None:
    """With the counts as its output and an audit record under the person who ran it."""
    counts = json.loads(platform.noesis("jobs", "run", "purge").stdout)
    assert set(counts) >= {"job_runs", "dead_letters", "run_events"}
    (entry,) = platform.rows("select actor, subject from core.audit where action = 'job-done' and subject = 'purge'")
    assert entry.actor.startswith("operator:")


# ---- silence ---------------------------------------------------------------------------------------------------------

CANARIES = {
    "text": "Kanarienvogel Gehalt 4711",
    "mail": "eva.kanarie@vogel.example",
    "iban": "DE89370400440532013000",
    "phone": "+49 30 99887766",
    "card": "4111 1111 1111 1111",
}


def test_no_log_and_no_dead_letter_tells_content(
    platform: Platform, tenant: UUID, owner: Engine, tmp_path: Path
) -> None:
    """Canaries in document, name, title, metadata, question, malformed messages and in the errors of a broken database
    (its own error quotes the row): no log of any process and no reason of a letter carries one, nor any secret."""
    canary = " ".join(CANARIES.values())
    content = f"# {canary}\n\nIn diesem Dokument steht {canary}.\n"
    refuse = (
        "alter table rag.chunks add constraint canary_check check (text not like '%Kanarienvogel%') not valid",
        "alter table rag.chunks drop constraint canary_check",
    )
    fields = {"title": canary, "file_name": f"{canary}.md", "metadata": {"wer": canary}}
    stacks = len(_stacks(platform))
    with broken(owner, *refuse):
        publish(platform, tmp_path, submission(tenant, f"{canary}.md", content, **fields))
        failed = lambda: state(platform, tenant, f"{canary}.md") == ("failed", "attempts-exhausted")  # noqa: E731
        eventually(failed, 150, "every delivery ends in an error that quotes the row", later(platform))
    _malformed(platform, tenant, canary)
    platform.noesis("dead-letters", "replay", "--tenant", "vertrag", "--reason", "attempts-exhausted")
    eventually(lambda: state(platform, tenant, f"{canary}.md")[0] == "searchable", 60, "searchable")
    platform.noesis("ask", f"Was steht über {canary}?", "--tenant", "vertrag")
    _browse(platform, canary)
    logs = {path.name: path.read_text(errors="replace") for path in (platform.home / "logs").iterdir()}
    assert {"ingest.log", "embed.log", "agent.log", "maintenance.log", "web.log", "postgres.log"} <= set(logs)
    assert "canary_check" in logs["postgres.log"], "PostgreSQL told of the error, without its row"
    assert len(_stacks(platform)) > stacks, "the failures left their stacks"
    secrets = {k: v for k, v in platform.settings.items() if k in ("LITELLM_MASTER_KEY", "SECRET_KEY")}
    secrets |= {
        k: v.split(":")[2].partition("@")[0] for k, v in platform.settings.items() if k.endswith("DATABASE_URL")
    }
    found = [
        (name, what) for name, log in logs.items() for what, value in {**CANARIES, **secrets}.items() if value in log
    ]
    assert found == []
    told = platform.rows("select reason || ' ' || message from core.dead_letters")
    assert [row[0] for row in told if any(value in row[0] for value in CANARIES.values())] == []


def _stacks(platform: Platform) -> list[dict[str, Any]]:
    """The log lines of ingest that tell of an unexpected error."""
    lines = (platform.home / "logs/ingest.log").read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines if '"stack"' in line]


def _malformed(platform: Platform, tenant: UUID, canary: str) -> None:
    """Messages that are refused at the door, canaries in values, names and attributes."""
    before = os.environ.get("PUBSUB_EMULATOR_HOST")
    os.environ["PUBSUB_EMULATOR_HOST"] = platform.settings["PUBSUB_EMULATOR_HOST"]
    publisher = pubsub_v1.PublisherClient()
    if before is None:
        del os.environ["PUBSUB_EMULATOR_HOST"]
    topic = publisher.topic_path(platform.settings["GOOGLE_CLOUD_PROJECT"], "documents-upstream")
    good = DocumentSubmitted(tenant_id=tenant, external_id="x", content="")
    bodies = [
        canary.encode(),
        json.dumps({"name": canary, "version": 1}).encode(),
        json.dumps(submission(tenant, "x") | {"source_version": canary, canary: 1, "metadata": {canary: 1}}).encode(),
        json.dumps(submission(tenant, "x") | {"tenant_id": canary}).encode(),
        json.dumps(submission(tenant, "x") | {"uri": f"gs://{canary}", "content": None}).encode(),
    ]
    ids = [publisher.publish(topic, data, who=canary).result(timeout=20) for data in bodies[:4]]
    publisher.publish(topic, bodies[4], who=canary, **good.attributes()).result(timeout=20)
    publisher.stop()

    def archived() -> set[str]:
        return {row[0] for row in platform.rows("select message_id from core.dead_letters")}

    eventually(lambda: set(ids) <= archived(), 60, "all archived")


def _browse(platform: Platform, canary: str) -> None:
    """Requests that the web refuses, canaries in path, query, form and headers."""
    import http.client

    port = int(platform.settings.get("WEB_PORT") or platform.environment["WEB_PORT"])
    for method, path in (("GET", f"/nichts/{canary}"), ("POST", f"/sign-in?email={canary}"), ("PUT", f"/?q={canary}")):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        body = f"email={canary}".replace(" ", "+")
        headers = {"Content-Type": "application/x-www-form-urlencoded", "X-Canary": canary, "Cookie": canary}
        connection.request(method, path.replace(" ", "%20"), body, headers)
        connection.getresponse().read()
        connection.close()
    # Not HTTP at all: gunicorn's own complaint.
    import socket

    for service in ("ingest", "web"):
        address = platform.url(service).removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1])), timeout=20) as raw:
            raw.sendall(f"{canary} / HTTP/9.9\r\n\r\n".encode())
            raw.recv(1000)
