"""A tenant is erased: nothing of it is left, nothing of the others is touched, nothing comes back, and it is proven."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner
from flask import Flask, request
from sqlalchemy import text

from cli.main import noesis
from functions.agent import main as agent_main
from functions.embed import main as embed_main
from functions.ingest import main as ingest_main
from functions.ingest.ingestion import ingest_document
from shared import doors
from shared.database import operator_session, tenant_session
from shared.errors import PermanentError
from shared.events import AnswerQuestion, DocumentSubmitted, DocumentWithdrawn, EmbedChunks, Message
from shared.fakes import FakeBus
from shared.services import Services
from shared.services import services as process_services
from shared.settings import get_settings
from shared.tenants import catalogue
from shared.tenants.certificates import check_signature, signed
from shared.tenants.directory import Principal, create_tenant, memberships
from shared.tenants.erasure import ErasureBlocked, close_tenant, erase_tenant, find_erasure
from tests.integration.tenant_life import count_rows, live, rows_of_others, submission
from tests.pushes import Open, push_body

SECRET = "a-secret-key-of-this-test-0123456789"


@pytest.fixture(autouse=True)
def _no_letters(database: object) -> None:
    """Letters and jobs belong to nobody: every test begins without any."""
    with operator_session() as session:
        for table in ("core.job_runs", "core.dead_letters"):
            session.execute(text(f"delete from {table}"))


@pytest.fixture
def other(make_tenant: Callable[..., Principal], fake_services: Services, bus: FakeBus) -> Principal:
    """Another tenant that lives as well."""
    made = make_tenant()
    live(made, fake_services, bus)
    return made


def close(tenant: Principal) -> None:
    with operator_session() as session:
        close_tenant(session, tenant.tenant_id, tenant.tenant_slug, "operator:test")


def erase(tenant: Principal, services: Services, **options: Any) -> list[tuple[str, int]]:
    close(tenant)
    return list(steps(tenant, services, **options))


def steps(tenant: Principal, services: Services, **options: Any) -> Iterator[tuple[str, int]]:
    return erase_tenant(tenant.tenant_id, services.storage, secret=SECRET, stage="dev", **options)


def certificate_of(tenant: Principal) -> dict[str, Any]:
    with operator_session() as session:
        found = find_erasure(session, str(tenant.tenant_id))
    assert found is not None
    assert found.certificate is not None
    return found.certificate


def found(tenant_id: UUID) -> dict[str, int]:
    with operator_session() as session:
        return catalogue.search(session, tenant_id).own


def test_nothing_of_an_erased_tenant_is_left(
    tenant: Principal, other: Principal, fake_services: Services, bus: FakeBus
) -> None:
    """Rows, blobs, letters, traces: none. The other tenant's rows and blobs are the same, byte for byte."""
    live(tenant, fake_services, bus)
    empty = [name for name, count in count_rows(tenant.tenant_id).items() if count == 0]
    assert len(empty) < 8, empty
    before, theirs = rows_of_others(tenant.tenant_id), list(fake_services.storage.blobs(other.tenant_id))
    assert found(tenant.tenant_id)

    erase(tenant, fake_services, slice_rows=2)

    assert found(tenant.tenant_id) == {}
    assert sum(count_rows(tenant.tenant_id).values()) == 0
    assert list(fake_services.storage.blobs(tenant.tenant_id)) == []
    assert list(fake_services.storage.blobs(other.tenant_id)) == theirs
    after = rows_of_others(tenant.tenant_id)
    assert {name for name in before if before[name] != after[name]} <= {
        "core.stage_spending",  # what the tenant had reserved is given back
        "core.dead_letters",  # the letter of nobody that named it
        "core.audit",  # the record of a job that named it now says so by id
    }
    assert memberships(tenant.email) == []


def test_the_certificate_tells_what_was_done(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """Rows by table before, deleted and after, blobs, the search; signed, and any change is noticed."""
    live(tenant, fake_services, bus)
    rows = count_rows(tenant.tenant_id)
    erase(tenant, fake_services)
    certificate = certificate_of(tenant)
    check_signature(certificate, SECRET)
    for name, count in rows.items():
        if name in ("core.sources", "core.runs"):
            continue  # sources are unbound when the tenant is closed
        told = certificate["rows"].get(name, {"before": 0, "deleted": 0, "after": 0})
        assert told == {"before": count, "deleted": count, "after": 0}, name
    assert certificate["rows"]["core.dead_letters"]["deleted"] == 2
    assert certificate["blobs"] == {"number": 3, "bytes": certificate["blobs"]["bytes"], "after": 0}
    assert certificate["proof"]["searched_columns"] > 100
    assert certificate["proof"]["found"] == {}
    assert (certificate["slug"], certificate["requested_by"]) == (tenant.tenant_slug, "operator:test")
    changes: list[dict[str, Any]] = [{"slug": "another"}, {"rows": {}}, {"notes": []}, {"version": 2}, {"kind": "x"}]
    for change in changes:
        with pytest.raises(PermanentError):
            check_signature({**certificate, **change}, SECRET)
    with pytest.raises(PermanentError, match="another SECRET_KEY"):
        check_signature(certificate, SECRET + "!")
    assert signed({"a": 1}, SECRET)["signature"] != signed({"a": 2}, SECRET)["signature"]


def test_the_record_keeps_ids_only(tenant: Principal, other: Principal, fake_services: Services, bus: FakeBus) -> None:
    """Who and what a member did is reduced; that it was closed and erased, and by which operator, stays."""
    live(tenant, fake_services, bus)
    erase(tenant, fake_services)
    with operator_session() as session:
        rows = session.execute(
            text("select * from core.audit where tenant_id = :t order by at"), {"t": tenant.tenant_id}
        ).all()
        theirs = session.execute(
            text("select * from core.audit where tenant_id = :t and action = 'budget-set'"), {"t": other.tenant_id}
        ).all()
    by_action = {row.action: row for row in rows}
    assert {"tenant-closed", "tenant-erased", "budget-set", "job-done"} <= set(by_action)
    reduced = by_action["budget-set"]
    assert (reduced.actor, reduced.subject, reduced.details) == ("member", "", {})
    assert by_action["tenant-erased"].actor == "operator:test"
    assert by_action["tenant-erased"].details["rows"] > 20
    assert any(row.details.get("secret") for row in theirs)
    with pytest.raises(Exception, match="only for a tenant that is being erased"), operator_session() as session:
        session.execute(text("select core.reduce_audit(:t)"), {"t": other.tenant_id})


@pytest.fixture
def push(monkeypatch: pytest.MonkeyPatch, fake_services: Services) -> Callable[[Message], int]:
    """Pushes a message to its own door, as the bus does; returns the status."""
    monkeypatch.setattr(doors, "_verifier", Open)
    for module in (ingest_main, embed_main, agent_main):
        monkeypatch.setattr(module, "services", lambda: fake_services)
    handled: dict[type[Message], Any] = {EmbedChunks: embed_main.embed, AnswerQuestion: agent_main.agent}

    def pushed(message: Message) -> int:
        body = push_body(message.data(), message.attributes())
        with Flask("test").test_request_context("/sources/upstream", method="POST", json=body):
            status: int = handled.get(type(message), ingest_main.ingest)(request).status_code
        return status

    return pushed


@pytest.mark.parametrize("when", ["closed", "erased"])
def test_late_messages_bring_nothing_back(
    tenant: Principal, fake_services: Services, bus: FakeBus, push: Callable[[Message], int], when: str
) -> None:
    """Every message the tenant ever had, and new ones, after it was closed or erased: nothing is kept of them."""
    messages = live(tenant, fake_services, bus)
    messages.append(submission(tenant, "late", "# Spät\n\nDas darf niemand aufheben."))
    messages.append(DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="doc-0", source_version=99))
    if when == "closed":
        close(tenant)
    else:
        erase(tenant, fake_services)
    rows, blobs = count_rows(tenant.tenant_id), list(fake_services.storage.blobs(tenant.tenant_id))
    with operator_session() as session:
        session.execute(text("delete from core.dead_letters"))
    late = [m for m in messages if isinstance(m, DocumentSubmitted | DocumentWithdrawn | EmbedChunks | AnswerQuestion)]
    assert len({type(message) for message in late}) == 4
    assert {push(message) for message in late * 2} == {204}

    assert count_rows(tenant.tenant_id) == rows
    assert list(fake_services.storage.blobs(tenant.tenant_id)) == blobs
    with operator_session() as session:
        letters = session.execute(text("select * from core.dead_letters")).all()
    assert letters
    for letter in letters:
        assert (bytes(letter.data), letter.attributes, letter.tenant_id, letter.event_id) == (b"", {}, None, None)
        assert letter.reason == "tenant-erased"
        assert letter.discarded_at is not None  # nobody has to look after it, nothing is replayed
    if when == "erased":
        assert found(tenant.tenant_id) == {}


def test_erasing_twice_is_harmless(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """The second time finds it done: the same certificate, and nothing else happens."""
    live(tenant, fake_services, bus, documents=1)
    erase(tenant, fake_services)
    certificate, before = certificate_of(tenant), rows_of_others(uuid4())
    assert list(steps(tenant, fake_services)) == []
    assert certificate_of(tenant) == certificate
    assert rows_of_others(uuid4()) == before


def test_only_a_closed_tenant_is_erased(tenant: Principal, fake_services: Services) -> None:
    """Nobody comes to the rows of a tenant that is in use."""
    with pytest.raises(PermanentError, match="closed"):
        list(steps(tenant, fake_services))
    assert sum(count_rows(tenant.tenant_id).values()) > 0


def test_a_closed_tenant_lets_nobody_in(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """No member, no source, no second life under the same slug while it is being erased."""
    live(tenant, fake_services, bus, documents=1)
    close(tenant)
    close(tenant)
    assert memberships(tenant.email) == []
    with pytest.raises(PermanentError) as refused:
        ingest_document(submission(tenant, "x", "x"), "upstream", fake_services)
    assert refused.value.reason == "source-not-bound"
    with operator_session() as session:
        # Somebody binds it again by mistake: it stays closed.
        session.execute(text("insert into core.sources values (:t, 'upstream')"), {"t": tenant.tenant_id})
        states = set(session.scalars(text("select state from core.runs where tenant_id = :t"), {"t": tenant.tenant_id}))
    assert states == {"cancelled"}
    with pytest.raises(PermanentError) as refused:
        ingest_document(submission(tenant, "x", "x"), "upstream", fake_services)
    assert refused.value.reason == "source-not-bound"
    with pytest.raises(PermanentError, match="being erased"), operator_session() as session:
        create_tenant(session, tenant.tenant_slug, "again", "a@b.example")


def test_an_erasure_goes_on_where_it_was_stopped(
    make_tenant: Callable[..., Principal], fake_services: Services, bus: FakeBus
) -> None:
    """Stopped after every single transaction in turn, the same call goes on, and the certificate still adds up."""
    tenant = make_tenant()
    live(tenant, fake_services, bus, documents=2)
    rows = count_rows(tenant.tenant_id)
    close(tenant)
    calls = 0
    while next(steps(tenant, fake_services, slice_rows=1), None) is not None:
        calls += 1
    assert calls > 40
    told = certificate_of(tenant)["rows"]
    assert {name: told[name]["deleted"] for name in rows if rows[name] and name != "core.sources"} == {
        name: count for name, count in rows.items() if count and name != "core.sources"
    }
    assert found(tenant.tenant_id) == {}


def test_a_failed_statement_anywhere_is_survived(
    tenant: Principal, fake_services: Services, bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage fails in the middle of the blobs: no certificate until the next call has taken the rest."""
    live(tenant, fake_services, bus)
    close(tenant)
    storage = fake_services.storage
    erasing = storage.erase

    def broken(tenant_id: UUID) -> Iterator[int]:
        yield next(erasing(tenant_id))
        raise ConnectionError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "erase", broken)
        with pytest.raises(ConnectionError):
            list(steps(tenant, fake_services))
    with operator_session() as session:
        state = find_erasure(session, tenant.tenant_slug)
    assert state is not None
    assert (state.state, state.certificate) == ("proving", None)
    list(steps(tenant, fake_services))
    assert certificate_of(tenant)["blobs"]["after"] == 0


def test_no_certificate_while_something_is_left(
    tenant: Principal, fake_services: Services, bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the search finds is said, by table and column; the tenant stays uncertified."""
    live(tenant, fake_services, bus, documents=1)
    with operator_session() as session:
        # A platform table that should not know a tenant.
        session.execute(
            text("insert into core.web_hosts (origin, robots) values (:o, :r)"),
            {"o": f"https://{uuid4()}.example", "r": f"# for {tenant.tenant_id}"},
        )
    close(tenant)
    with pytest.raises(ErasureBlocked, match=r"core\.web_hosts\.robots 1"):
        list(steps(tenant, fake_services))
    with operator_session() as session:
        session.execute(text("delete from core.web_hosts"))
    list(steps(tenant, fake_services))
    assert certificate_of(tenant)["proof"]["found"] == {}


def test_a_transaction_from_before_is_waited_for(tenant: Principal, fake_services: Services) -> None:
    """Who began to write before the closing may not know of it: nothing is counted or deleted until that has ended."""
    with tenant_session(tenant.tenant_id) as session:
        session.execute(
            text("insert into core.groups (tenant_id, group_id, name) values (:t, :g, 'late')"),
            {"t": tenant.tenant_id, "g": uuid4()},
        )
        close(tenant)
        with pytest.raises(ErasureBlocked, match="still open"):
            list(steps(tenant, fake_services, patience=0.2))
    list(steps(tenant, fake_services))
    assert certificate_of(tenant)["rows"]["core.groups"] == {"before": 1, "deleted": 1, "after": 0}


def test_an_index_of_the_tenant_goes_too(
    tenant: Principal, fake_services: Services, bus: FakeBus, database: Any
) -> None:
    """The definition of a large tenant's own index names it; the owner's connection drops it."""
    live(tenant, fake_services, bus, documents=1)
    name = f"erasure_{uuid4().hex}"
    from shared.retrieval.indexes import owner_connection

    with owner_connection(database.owner_url) as owner:
        owner.exec_driver_sql(
            f"create index {name} on rag.embeddings (chunk_id) where tenant_id = '{tenant.tenant_id}'"
        )
    close(tenant)
    with pytest.raises(ErasureBlocked, match="indexes 1"):
        list(steps(tenant, fake_services))
    list(steps(tenant, fake_services, owner_url=database.owner_url))
    assert found(tenant.tenant_id) == {}


@pytest.fixture
def blob_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: object) -> Iterator[Path]:
    """The settings of the process with a blob folder and a key, as a command finds them."""
    monkeypatch.setenv("BLOB_URL", (tmp_path / "blobs").as_uri())
    monkeypatch.setenv("SECRET_KEY", SECRET)
    get_settings.cache_clear()
    process_services.cache_clear()
    yield tmp_path
    get_settings.cache_clear()
    process_services.cache_clear()


def run(*arguments: str) -> Any:
    return CliRunner().invoke(noesis, ["tenants", *arguments])


def test_the_commands_erase_and_verify(
    tenant: Principal, fake_services: Services, bus: FakeBus, blob_folder: Path
) -> None:
    """By slug, only with the slug again; the certificate is verified by machine, also against the database."""
    slug, file = tenant.tenant_slug, blob_folder / "certificate.json"
    fake_services._storage = process_services().storage
    live(tenant, fake_services, bus)
    assert run("erase", slug, "--confirm", "yes").exit_code != 0
    assert sum(count_rows(tenant.tenant_id).values()) > 0
    done = run("erase", slug, "--confirm", slug, "--certificate", str(file))
    assert done.exit_code == 0, done.output
    assert not (blob_folder / "blobs" / str(tenant.tenant_id)).exists()
    checked = run("verify-certificate", str(file))
    assert checked.exit_code == 0, checked.output
    assert "nothing of the tenant" in checked.output
    again = run("erase", slug, "--confirm", slug)
    assert json.loads(again.stdout) == json.loads(file.read_text())

    fake_services.storage.put(tenant.tenant_id, b"back from the dead")
    refused = run("verify-certificate", str(file))
    assert isinstance(refused.exception, PermanentError)
    assert "blobs 1" in refused.exception.message
    assert run("verify-certificate", str(file), "--signature-only").exit_code == 0
    file.write_text(file.read_text().replace(slug, "another"))
    assert isinstance(run("verify-certificate", str(file), "--signature-only").exception, PermanentError)
    for nonsense in ("{", "[]", "{}"):
        file.write_text(nonsense)
        assert isinstance(run("verify-certificate", str(file)).exception, PermanentError)


def test_killed_at_any_point_the_same_command_finishes(
    tenant: Principal, fake_services: Services, bus: FakeBus, blob_folder: Path
) -> None:
    """A real process, killed with -9 after the 1st, 4th, 9th … transaction of its life, until one comes to the end."""
    fake_services._storage = process_services().storage
    live(tenant, fake_services, bus)
    rows = count_rows(tenant.tenant_id)
    script = (
        "import sys; from uuid import UUID; from shared.services import services\n"
        "from shared.tenants.erasure import erase_tenant\n"
        "tenant, secret = UUID(sys.argv[1]), sys.argv[2]\n"
        "for step in erase_tenant(tenant, services().storage, secret=secret, stage='dev', slice_rows=1):\n"
        "    print(*step, flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    close(tenant)
    kills, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        kills += 1
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tenant.tenant_id), SECRET],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process:
            for _ in range((kills * 3) ** 2):
                if not process.stdout.readline():
                    break
                # It never gets further ahead than the transaction in which it is killed, however busy we are.
                process.stdin.write("\n")
                process.stdin.flush()
            else:
                process.kill()
            code = process.wait(timeout=60)
    assert code == 0
    assert kills > 2
    told = certificate_of(tenant)["rows"]
    assert all(told[name]["deleted"] == count for name, count in rows.items() if count and name != "core.sources")
    assert found(tenant.tenant_id) == {}
    assert list(fake_services.storage.blobs(tenant.tenant_id)) == []


def test_the_search_sees_every_part_of_a_large_table(
    tenant: Principal, bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read in pieces, so that no statement runs into the driver's time limit: each row is counted exactly once."""
    with operator_session() as session:
        session.execute(
            text(
                "insert into core.groups (tenant_id, group_id, name) select :t, gen_random_uuid(), "
                "n || repeat('x', 2000) from generate_series(1, 60) n"
            ),
            {"t": tenant.tenant_id},
        )
        whole = catalogue.search(session, tenant.tenant_id)
        monkeypatch.setattr(catalogue, "PIECE", 1)
        assert catalogue.search(session, tenant.tenant_id) == whole
    assert whole.own["core.groups.tenant_id"] == 60
