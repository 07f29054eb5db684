"""The main job with real processes: published documents become cited answers, whatever is killed."""

from __future__ import annotations

import base64
import itertools
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.api_core.exceptions import DeadlineExceeded
from google.cloud import pubsub_v1
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from shared.events import DocumentSubmitted, DocumentWithdrawn, Message
from tests.acceptance.conftest import Platform, eventually
from tests.acceptance.pdf_writer import make_pdf

PDF = make_pdf(
    ["Betriebsvereinbarung Fahrräder", "", "Diensträder werden für 36 Monate überlassen.",
     "Der Eigenanteil beträgt 25 Euro im Monat."],
    ["Wartung", "", "Die Bremsen der Diensträder werden alle sechs Monate geprüft.",
     "Zuständig ist die Werkstatt am Nordhafen."],
)  # fmt: skip
MANUAL = b"""# HP-200 operating manual

## Maintenance

The impeller is inspected every 2,000 operating hours. The shaft seal is replaced after 8,000 operating hours.

## Fault E17

Fault E17 means that the motor is overheated. Let the pump cool for 30 minutes.
"""

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def publisher(platform: Platform) -> Iterator[pubsub_v1.PublisherClient]:
    """Google's own client, pointed at the bus as at any emulator."""
    before = os.environ.get("PUBSUB_EMULATOR_HOST")
    os.environ["PUBSUB_EMULATOR_HOST"] = platform.settings["PUBSUB_EMULATOR_HOST"]
    client = pubsub_v1.PublisherClient()
    if before is None:
        del os.environ["PUBSUB_EMULATOR_HOST"]
    yield client
    client.stop()


@pytest.fixture(scope="module")
def tenants(platform: Platform) -> tuple[UUID, UUID]:
    """Two tenants."""
    return platform.tenant("nord"), platform.tenant("sued")


def send(platform: Platform, publisher: pubsub_v1.PublisherClient, data: bytes, **attributes: str) -> str:
    """Publish to the topic of upstream systems; returns the message id."""
    topic = publisher.topic_path(platform.settings["GOOGLE_CLOUD_PROJECT"], "documents-upstream")
    message_id: str = publisher.publish(topic, data, **attributes).result(timeout=20)
    return message_id


def publish(platform: Platform, publisher: pubsub_v1.PublisherClient, event: Message) -> str:
    """Publish an event of the contract."""
    return send(platform, publisher, event.data(), **event.attributes())


def document(tenant: UUID, external_id: str, data: bytes, version: int = 1) -> DocumentSubmitted:
    """A submission with inline content."""
    return DocumentSubmitted(
        tenant_id=tenant,
        external_id=external_id,
        source_version=version,
        file_name=external_id,
        content=base64.b64encode(data).decode(),
    )


def state(platform: Platform, tenant: UUID, external_id: str) -> tuple[str, str | None]:
    """State and reason of a document; `absent` when nobody knows it."""
    rows = platform.rows(
        "select state, reason from rag.documents where tenant_id = :t and external_id = :e", t=tenant, e=external_id
    )
    return (rows[0].state, rows[0].reason) if rows else ("absent", None)


def ask(platform: Platform, tenant: str, question: str) -> Any:
    """Ask by the command line; returns the run's row."""
    platform.noesis("ask", question, "--tenant", tenant)
    return platform.rows(
        "select r.*, t.slug from core.runs r join core.tenants t using (tenant_id) where t.slug = :s "
        "order by r.created_at desc limit 1",
        s=tenant,
    )[0]


def test_a_published_document_becomes_a_cited_answer(
    platform: Platform, publisher: pubsub_v1.PublisherClient, tenants: tuple[UUID, UUID]
) -> None:
    """PDF and Markdown in, German and English questions, citations with document, page and passage; the other tenant
    finds nothing."""
    nord, sued = tenants
    publish(platform, publisher, document(nord, "fahrrad.pdf", PDF))
    publish(platform, publisher, document(nord, "hp200.md", MANUAL))
    for name in ("fahrrad.pdf", "hp200.md"):
        eventually(lambda name=name: state(platform, nord, name)[0] == "searchable", 60, f"{name} searchable")  # type: ignore[misc]

    german = ask(platform, "nord", "Wie oft werden die Bremsen der Diensträder geprüft?")
    assert german.no_evidence is False
    assert "sechs Monate" in german.answer
    citation = platform.rows("select * from core.citations where run_id = :r order by number", r=german.run_id)[0]
    assert (citation.title, citation.page) == ("fahrrad.pdf", 2)
    assert "alle sechs Monate" in citation.quote
    chunk = platform.rows("select text from rag.chunks where chunk_id = :c", c=citation.chunk_id)[0]
    assert chunk.text[citation.quote_start : citation.quote_end] == citation.quote

    english = ask(platform, "nord", "What does fault E17 mean?")
    assert "overheated" in english.answer
    assert platform.rows("select 1 from core.citations where run_id = :r", r=english.run_id)

    other = ask(platform, "sued", "Wie oft werden die Bremsen der Diensträder geprüft?")
    assert other.no_evidence is True
    assert platform.rows("select 1 from core.citations where run_id = :r", r=other.run_id) == []
    assert platform.rows("select 1 from rag.documents where tenant_id = :t", t=sued) == []


def test_a_trace_runs_from_publish_to_the_last_event(
    platform: Platform, publisher: pubsub_v1.PublisherClient, tenants: tuple[UUID, UUID]
) -> None:
    """The trace id of the publisher is on the version and on the outcome event that subscribers get."""
    project = platform.settings["GOOGLE_CLOUD_PROJECT"]
    before = os.environ.get("PUBSUB_EMULATOR_HOST")
    os.environ["PUBSUB_EMULATOR_HOST"] = platform.settings["PUBSUB_EMULATOR_HOST"]
    subscriber = pubsub_v1.SubscriberClient()
    if before is None:
        del os.environ["PUBSUB_EMULATOR_HOST"]
    subscription = subscriber.subscription_path(project, f"outcomes-{uuid4().hex[:8]}")
    subscriber.create_subscription(
        request={"name": subscription, "topic": subscriber.topic_path(project, "document-outcomes")}
    )
    event = document(tenants[0], "trace.md", b"# Trace\n\nOne trace from end to end.")
    publish(platform, publisher, event)
    found: list[dict[str, Any]] = []

    def arrived() -> bool:
        try:
            pulled = subscriber.pull(request={"subscription": subscription, "max_messages": 10}, timeout=10)
        except DeadlineExceeded:  # nothing yet
            return False
        for received in pulled.received_messages:
            found.append({**received.message.attributes, **json.loads(received.message.data)})
        if pulled.received_messages:
            ids = [received.ack_id for received in pulled.received_messages]
            subscriber.acknowledge(request={"subscription": subscription, "ack_ids": ids})
        return any(f["external_id"] == "trace.md" for f in found)

    eventually(arrived, 60, "document-indexed")
    subscriber.delete_subscription(request={"subscription": subscription})
    subscriber.close()
    indexed = next(f for f in found if f["external_id"] == "trace.md")
    assert (indexed["name"], indexed["source_version"]) == ("document-indexed", 1)
    assert indexed["traceparent"][3:35] == event.trace_id


def test_a_new_version_replaces_the_old_and_withdrawal_hides_it(
    platform: Platform, publisher: pubsub_v1.PublisherClient, tenants: tuple[UUID, UUID]
) -> None:
    """Version 2 answers instead of 1; a late version 1 changes nothing; after withdrawal nothing answers."""
    nord = tenants[0]
    publish(platform, publisher, document(nord, "frist.md", b"# Frist\n\nDie Probezeit dauert drei Monate."))
    eventually(lambda: state(platform, nord, "frist.md")[0] == "searchable", 60, "version 1")
    publish(platform, publisher, document(nord, "frist.md", "# Frist\n\nDie Probezeit dauert fünf Monate.".encode(), 2))

    def current() -> int | None:
        rows = platform.rows(
            "select v.source_version from rag.documents d join rag.versions v on v.version_id = d.current_version_id "
            "where d.tenant_id = :t and d.external_id = 'frist.md'", t=nord)  # fmt: skip
        return rows[0].source_version if rows else None

    eventually(lambda: current() == 2, 60, "version 2")
    publish(platform, publisher, document(nord, "frist.md", b"late and old"))
    assert "fünf Monate" in ask(platform, "nord", "Wie lange dauert die Probezeit?").answer
    assert current() == 2
    publish(platform, publisher, DocumentWithdrawn(tenant_id=nord, external_id="frist.md", source_version=3))
    eventually(lambda: state(platform, nord, "frist.md")[0] == "deleted", 60, "withdrawn")
    assert "fünf Monate" not in ask(platform, "nord", "Wie lange dauert die Probezeit?").answer


BAD_DOCUMENTS = {
    "empty.txt": (b"", "empty-document"),
    "blank.txt": (b" \n\t ", "empty-document"),
    "broken.pdf": (b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog", "corrupt"),
    "picture.png": (b"\x89PNG\r\n\x1a\n" + bytes(200), "unsupported-type"),
}


def test_a_bad_document_fails_with_a_reason_and_the_others_go_on(
    platform: Platform, publisher: pubsub_v1.PublisherClient, tenants: tuple[UUID, UUID]
) -> None:
    """Each gets its code and what to do; NUL and lone surrogates in a text are cleaned, not fatal."""
    nord = tenants[0]
    for name, (data, _) in BAD_DOCUMENTS.items():
        publish(platform, publisher, document(nord, name, data))
    publish(
        platform,
        publisher,
        document(
            nord, "nul.txt", b"The key\x00word is Zwergmispel \xed\xa0\x80 here. " + b"Ordinary text follows. " * 9
        ),
    )
    for name, (_, reason) in BAD_DOCUMENTS.items():
        eventually(lambda name=name: state(platform, nord, name)[0] == "failed", 60, f"{name} failed")  # type: ignore[misc]
        assert state(platform, nord, name)[1] == reason, name
    rows = platform.rows("select next_action from rag.documents where tenant_id = :t and state = 'failed'", t=nord)
    assert all(row.next_action for row in rows)
    eventually(lambda: state(platform, nord, "nul.txt")[0] == "searchable", 60, "the others go on")


def bad_messages(tenant: UUID) -> dict[str, tuple[bytes, dict[str, str], str]]:
    """Messages that no handler can take, with the reason they end with."""
    good = json.loads(document(tenant, "x", b"y").data())

    def without(field: str) -> dict[str, Any]:
        return {name: value for name, value in good.items() if name != field}

    return {
        "not JSON": (b"\xff\xfe{", {}, "malformed-message"),
        "no data": (b"", {"name": "document-submitted"}, "malformed-message"),
        "unknown name": (json.dumps(good | {"name": "nonsense"}).encode(), {}, "unknown-message"),
        "unknown version": (json.dumps(good | {"version": 99}).encode(), {}, "unknown-message"),
        "no tenant": (json.dumps(without("tenant_id")).encode(), {}, "malformed-message"),
        "unknown tenant": (json.dumps(good | {"tenant_id": str(uuid4())}).encode(), {}, "source-not-bound"),
        "forged attribute": (json.dumps(good).encode(), {"tenant_id": str(uuid4())}, "tenant-mismatch"),
        "NUL": (json.dumps(good | {"external_id": "a\x00b"}).encode(), {}, "malformed-message"),
        "surrogate": (json.dumps(good | {"title": "a\ud800b"}).encode(), {}, "malformed-message"),
        "oversize": (json.dumps(good | {"content": "QUFB" * 100_000}).encode(), {}, "malformed-message"),
        "wrong topic": (json.dumps({"name": "run-job", "version": 1, "job": "sweep", "slot": "2026-01-01T00:00:00Z"})
                        .encode(), {}, "wrong-topic"),
        "foreign uri": (json.dumps(without("content") | {"uri": "file:///etc/passwd"})
                        .encode(), {}, ""),
    }  # fmt: skip


def test_a_bad_message_ends_as_a_dead_letter_with_its_reason(
    platform: Platform, publisher: pubsub_v1.PublisherClient, tenants: tuple[UUID, UUID]
) -> None:
    """Nothing loops, nothing is lost: each is archived once with a reason; a foreign URI fails its document."""
    ids = {}
    for name, (data, attributes, reason) in bad_messages(tenants[0]).items():
        ids[name] = (send(platform, publisher, data, **(attributes or {"test": name})), reason)

    def archived() -> dict[str, str]:
        return {row.message_id: row.reason for row in platform.rows("select message_id, reason from core.dead_letters")}

    expected = {message_id: reason for message_id, reason in ids.values() if reason}
    eventually(lambda: set(expected) <= set(archived()), 60, "all archived")
    assert {k: v for k, v in archived().items() if k in expected} == expected
    eventually(lambda: state(platform, tenants[0], "x")[1] == "uri-not-allowed", 60, "the foreign URI is refused")
    assert "malformed-message" in platform.noesis("dead-letters", "list").stdout


def test_a_push_without_a_true_token_is_refused(platform: Platform, tenants: tuple[UUID, UUID]) -> None:
    """401 without or with a garbage token, at every function; nothing is stored."""
    event = document(tenants[0], "unsigned.md", b"# Not signed")
    body = json.dumps(
        {
            "message": {
                "data": base64.b64encode(event.data()).decode(),
                "attributes": event.attributes(),
                "messageId": "1",
            }
        }
    ).encode()
    for service, token in itertools.product(("ingest", "embed", "agent", "maintenance"), ("", "Bearer x.y.z")):
        headers = {"Content-Type": "application/json"} | ({"Authorization": token} if token else {})
        request = urllib.request.Request(platform.url(service) + "/sources/upstream", body, headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        assert refused.value.code == 401, service
        refused.value.close()
    assert state(platform, tenants[0], "unsigned.md")[0] == "absent"


def laws(shared: Path | None, count: int) -> dict[str, bytes]:
    """Real German laws when the folder is there, else texts of our own."""
    if shared is not None:
        files = sorted((shared / "data/laws").glob("*.md"))[:count]
        return {path.name: path.read_bytes() for path in files}
    return {
        f"regel-{n}.md": f"# Regel {n}\n\n".encode()
        + f"Absatz über das Thema {n} mit der Zahl {n * 37}. ".encode() * 60
        for n in range(count)
    }


@pytest.mark.parametrize("service", ["ingest", "embed"])
def test_a_killed_function_loses_nothing_and_repeats_nothing(
    platform: Platform, publisher: pubsub_v1.PublisherClient, service: str
) -> None:
    """kill -9 in the middle of real laws: afterwards every document is searchable once, with every vector once."""
    folder = Path(os.environ.get("NOESIS_SHARED") or Path(__file__).parents[3] / "shared")
    corpus = laws(folder if (folder / "data/laws").is_dir() else None, 25)
    slug = f"kill-{service}-{uuid4().hex[:6]}"
    tenant = platform.tenant(slug)
    for name, data in corpus.items():
        publish(platform, publisher, document(tenant, name, data[:250_000]))
    table = {"ingest": "versions", "embed": "embeddings"}[service]

    def count(name: str) -> int:
        return int(platform.rows(f"select count(*) as n from rag.{name} where tenant_id = :t", t=tenant)[0].n)

    eventually(lambda: count(table) > 3, 60, f"{service} has begun")
    platform.kill(service)

    def searchable() -> bool:
        rows = platform.rows(
            "select count(*) as n from rag.documents where tenant_id = :t and state = 'searchable'", t=tenant
        )
        return bool(rows[0].n == len(corpus))

    eventually(searchable, 170, f"all searchable after {service} was killed", nudge=lambda: platform.advance(35))
    whole = platform.rows(
        "select d.external_id, v.chunks, count(c.chunk_id) as stored, count(e.chunk_id) as embedded, "
        "count(distinct c.ordinal) as ordinals from rag.documents d "
        "join rag.versions v on v.tenant_id = d.tenant_id and v.version_id = d.current_version_id "
        "left join rag.chunks c on c.tenant_id = v.tenant_id and c.version_id = v.version_id "
        "left join rag.embeddings e on e.tenant_id = c.tenant_id and e.chunk_id = c.chunk_id "
        "where d.tenant_id = :t group by 1, 2", t=tenant)  # fmt: skip
    assert len(whole) == len(corpus)
    assert all(row.chunks == row.stored == row.embedded == row.ordinals > 0 for row in whole)
    assert platform.rows("select 1 from core.outbox where tenant_id = :t", t=tenant) == []


def test_a_sweep_killed_in_the_middle_is_done_by_the_next(
    platform: Platform, publisher: pubsub_v1.PublisherClient
) -> None:
    """kill -9 of maintenance in mid-sweep: the next sweep takes over, and every lost batch is embedded once."""
    slug = f"kill-sweep-{uuid4().hex[:6]}"
    tenant = platform.tenant(slug)
    corpus = laws(None, 12)
    for name, data in corpus.items():
        publish(platform, publisher, document(tenant, name, data))

    def searchable() -> int:
        rows = platform.rows(
            "select count(*) as n from rag.documents where tenant_id = :t and state = 'searchable'", t=tenant
        )
        return int(rows[0].n)

    eventually(lambda: searchable() == len(corpus), 60, "searchable")
    owner = create_engine(platform.settings["MIGRATION_DATABASE_URL"], poolclass=NullPool)
    with owner.begin() as connection:
        # As if every embedding batch of these documents had been lost some time ago.
        for statement in (
            "delete from rag.embeddings where tenant_id = :t",
            "update rag.documents set current_version_id = null, state = 'ingested' where tenant_id = :t",
            "update rag.versions set state = 'ingested', updated_at = now() - interval '20 min' where tenant_id = :t",
        ):
            connection.execute(text(statement), {"t": tenant})
    with owner.connect() as holding:
        # A locked document stops the sweep where we want it: some batches sent, some not.
        blocked = holding.execute(
            text("select document_id from rag.documents where tenant_id = :t order by 1 desc limit 1 for update"),
            {"t": tenant},
        ).scalar_one()
        waits = "select 1 from pg_locks where not granted"
        platform.advance(61)
        eventually(
            lambda: holding.execute(text(waits)).first(), 60, "a sweep works", nudge=lambda: platform.advance(61)
        )
        platform.kill("maintenance")
        holding.rollback()
    owner.dispose()

    def move_time() -> None:
        with platform.operator.begin() as connection:
            connection.exec_driver_sql("update core.job_runs set lease_until = lease_until - interval '3 min'")
            # What the killed sweep had marked as looked at is looked at again after the same time.
            connection.execute(
                text("update rag.versions set updated_at = updated_at - interval '15 min' where tenant_id = :t"),
                {"t": tenant},
            )
        platform.advance(61)

    eventually(lambda: searchable() == len(corpus), 120, f"swept, {blocked} too", nudge=move_time)
    once = platform.rows(
        "select (select count(*) from rag.chunks where tenant_id = :t) as chunks, "
        "(select count(*) from rag.embeddings where tenant_id = :t) as vectors", t=tenant)[0]  # fmt: skip
    assert once.chunks == once.vectors > 0


def test_a_killed_agent_answers_every_question_once(
    platform: Platform, publisher: pubsub_v1.PublisherClient, tenants: tuple[UUID, UUID]
) -> None:
    """kill -9 while questions are worked on: each run is answered once, its events have no gap."""
    import threading

    nord = tenants[0]
    publish(platform, publisher, document(nord, "hp200.md", MANUAL))
    eventually(lambda: state(platform, nord, "hp200.md")[0] == "searchable", 60, "searchable")
    questions = [f"What does fault E17 mean, question {n}?" for n in range(4)]
    askers = [
        threading.Thread(target=platform.noesis, args=("ask", q, "--tenant", "nord", "--timeout", "1"),
                         kwargs={"check": False})
        for q in questions
    ]  # fmt: skip
    for asker in askers:
        asker.start()
    running = "select count(*) as n from core.runs where tenant_id = :t and question like '%question%' and state in :s"
    eventually(
        lambda: platform.rows(running.replace("in :s", "<> 'queued'"), t=nord)[0].n > 0, 30, "a run is worked on"
    )
    platform.kill("agent")
    for asker in askers:
        asker.join()

    def answered() -> bool:
        return bool(platform.rows(running.replace("in :s", "= 'answered'"), t=nord)[0].n == len(questions))

    def move_time() -> None:
        # The lease of a dead worker ends by the database's clock; that clock is moved for it.
        with platform.operator.begin() as connection:
            connection.exec_driver_sql(
                "update core.runs set lease_until = lease_until - interval '150 s', "
                "created_at = created_at - interval '3 min' where state in ('running', 'queued')"
            )
        platform.advance(61)

    eventually(answered, 120, "every question answered", nudge=move_time)
    for row in platform.rows(
        "select r.run_id, "
        "(select count(*) from core.run_events e where e.run_id = r.run_id and e.kind = 'answer') as ends, "
        "(select count(*) = max(seq) from core.run_events e where e.run_id = r.run_id) as gapless "
        "from core.runs r where tenant_id = :t", t=nord):  # fmt: skip
        assert (row.ends, row.gapless) == (1, True)


def test_the_platform_is_whole(platform: Platform) -> None:
    """After all this `noesis status` finds every service healthy, and the page answers."""
    eventually(lambda: platform.status()["healthy"], 60, "healthy again")
    with urllib.request.urlopen(platform.url("web") + "/health/readiness", timeout=10) as answer:
        assert answer.status == 200
