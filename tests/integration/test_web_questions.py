"""Asking over HTTP and following the answer; the test plays the agent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from uuid import UUID, uuid4

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.wrappers import Response

from shared.conversations.ending import fail, finish
from shared.conversations.feedback import rating_of
from shared.conversations.runs import Answer, Citation, Lease, RunEvent, append_events, take_lease
from shared.database import tenant_session
from shared.documents.intake import receive
from shared.errors import PermanentError
from shared.events import DocumentSubmitted
from shared.fakes import FakeBus, FakeStorage
from shared.services import Services
from shared.settings import load_settings
from shared.tenants.directory import Principal, add_member, memberships
from tests.integration.web_browser import signed_in
from web import authentication, create_app


@pytest.fixture
def app(database: object, bus: FakeBus) -> Flask:
    """The application on the test's database, with a bus that keeps what was published."""
    authentication.forget_memberships()
    settings = load_settings(secret_key="a-key-for-this-test-only-0123456789abcdef", local_sign_in=True)
    return create_app(services=Services(settings, _storage=FakeStorage()))


def ask(client: FlaskClient, question: str = "How long is the leave?") -> UUID:
    """Ask; returns the run id."""
    answer = client.post("/questions", json={"question": question})
    assert answer.status_code == 201
    return UUID(answer.get_json()["id"])


def lease(member: Principal, run_id: UUID) -> Lease:
    """Take the run as the agent does."""
    with tenant_session(member.tenant_id) as session:
        return take_lease(session, member.tenant_id, run_id)


def tell(held: Lease, *events: RunEvent) -> None:
    """Write events of the run."""
    with tenant_session(held.tenant_id) as session:
        append_events(session, held, events)


def answered(held: Lease, seq: int, text: str = "30 days [1].") -> None:
    """Finish the run."""
    submitted = DocumentSubmitted(tenant_id=held.tenant_id, external_id=str(held.run_id), content="")
    with tenant_session(held.tenant_id) as session:
        # An answer that quotes a document which is not there (any more) is withheld.
        document_id = receive(session, submitted, "upstream").document_id
    proof = Citation(1, document_id, uuid4(), uuid4(), "Leave", ("III", "14"), 7, "30 days", 5, 12)
    with tenant_session(held.tenant_id) as session:
        finish(session, held, Answer(text, False, (proof,), "extractive", 1, 1), seq)


def frames(response: Response) -> Iterator[tuple[int, str, dict[str, object]]]:
    """Events of a stream as (id, kind, data), one by one as they come."""
    for piece in response.response:
        text = piece.decode() if isinstance(piece, bytes) else piece
        found = re.fullmatch(r"id: (\d+)\nevent: ([\w-]+)\ndata: (.*)\n\n", text)
        if found:
            yield int(found[1]), found[2], json.loads(found[3])


def test_a_question_is_stored_and_commanded(app: Flask, tenant: Principal, bus: FakeBus) -> None:
    """201 with the run and where it is; the same Idempotency-Key is the same run and one command."""
    client = signed_in(app, tenant)
    headers = {"Idempotency-Key": "one-click"}
    first, second = (client.post("/questions", json={"question": "Why?"}, headers=headers) for _ in range(2))
    assert first.status_code == 201
    assert first.location == f"/runs/{first.get_json()['id']}"
    assert first.get_json() | {"state": "queued"} == second.get_json()
    assert bus.names() == ["answer-question"]
    other = client.post("/questions", json={"question": "Why not?"}, headers=headers | {"Accept-Language": "de"})
    assert (other.status_code, other.get_json()["reason"]) == (409, "key-used-already")
    assert "Schlüssel" in other.get_json()["detail"]
    assert bus.names() == ["answer-question"]


def test_a_question_that_is_none_is_refused_in_the_readers_language(app: Flask, tenant: Principal) -> None:
    """Typed problems for empty, too long, not text, not JSON; hostile characters are taken out."""
    client = signed_in(app, tenant)
    german = {"Accept-Language": "de"}
    empty = client.post("/questions", json={"question": " ?! "}, headers=german)
    assert (empty.status_code, empty.get_json()["reason"]) == (422, "empty-question")
    assert empty.get_json()["detail"] == "Die Frage ist leer."
    long = client.post("/questions", json={"question": "x" * 5000})
    assert (long.status_code, long.get_json()["reason"]) == (422, "question-too-long")
    for body in (b"", b"[]", b'{"question": 7}', b"{", b"\xff"):
        answer = client.post("/questions", data=body, content_type="application/json")
        assert (answer.status_code, answer.get_json()["reason"]) == (400, "malformed-request")
    odd = client.post("/questions", data=b'{"question": "a\\u0000b\\ud800c"}', content_type="application/json")
    assert odd.get_json()["question"] == "abc"


def test_the_stream_tells_steps_tokens_and_the_final_answer(app: Flask, tenant: Principal) -> None:
    """Events come while the run works; the last one carries the stored answer with its citations."""
    client = signed_in(app, tenant)
    run_id = ask(client)
    held = lease(tenant, run_id)
    response = client.get(f"/runs/{run_id}/events", buffered=False)
    assert response.mimetype == "text/event-stream"
    stream = frames(response)
    tell(held, RunEvent(1, "step", {"name": "retrieve"}), RunEvent(2, "token", {"text": "30\n\u2028days"}))
    assert next(stream) == (1, "step", {"name": "retrieve"})
    assert next(stream) == (2, "token", {"text": "30\n\u2028days"})
    answered(held, 3)
    seq, kind, run = next(stream)
    assert (seq, kind, run["answer"], run["state"]) == (3, "answer", "30 days [1].", "answered")
    assert [c["quote"] for c in run["citations"]] == ["30 days"]  # type: ignore[attr-defined]
    assert next(stream, None) is None


@pytest.mark.parametrize(("headers", "query"), [({"Last-Event-ID": "2"}, "?after=0"), ({}, "?after=2")])
def test_the_stream_resumes_after_the_last_event(
    app: Flask, tenant: Principal, headers: dict[str, str], query: str
) -> None:
    """What was seen does not come again, what was missed does; the header goes before the address."""
    client = signed_in(app, tenant)
    run_id = ask(client)
    held = lease(tenant, run_id)
    tell(held, *(RunEvent(n, "token", {"text": str(n)}) for n in range(1, 4)))
    answered(held, 4)
    with client.get(f"/runs/{run_id}/events{query}", headers=headers) as response:
        assert [(seq, kind) for seq, kind, _ in frames(response)] == [(3, "token"), (4, "answer")]


def test_a_stream_of_an_ended_run_ends(app: Flask, tenant: Principal) -> None:
    """Also for a client that has seen everything, or claims to: it gets the answer again, once."""
    client = signed_in(app, tenant)
    run_id = ask(client)
    answered(lease(tenant, run_id), 1)
    for seen in ("1", "99999999999999999999", "2147483647", "-1", "x"):
        with client.get(f"/runs/{run_id}/events", headers={"Last-Event-ID": seen}) as response:
            assert [kind for _, kind, _ in frames(response)] == ["answer"]


def test_a_failed_run_says_why_and_what_to_do(app: Flask, tenant: Principal) -> None:
    """In German by the code; in English in the back end's own words; an unknown code falls back to those."""
    client = signed_in(app, tenant)
    for reason, german in (
        ("model-refused", "Das Sprachmodell hat die Anfrage abgelehnt."),
        ("brand-new", "It is new. Wait."),
    ):
        run_id = ask(client)
        with tenant_session(tenant.tenant_id) as session:
            fail(session, tenant.tenant_id, run_id, PermanentError(reason, "It is new.", "Wait."))
        for language, message in (("de", german), ("en", "It is new. Wait.")):
            headers = {"Accept-Language": language}
            with client.get(f"/runs/{run_id}/events", headers=headers) as response:
                ((_, kind, run),) = frames(response)
            assert (kind, run["reason"], run["message"]) == ("failed", reason, message)


def test_a_run_is_seen_by_its_member_only(app: Flask, make_tenant: Callable[..., Principal]) -> None:
    """404 for another tenant's member and for a colleague, as for a run that does not exist."""
    owner, other = make_tenant(), make_tenant()
    with tenant_session(owner.tenant_id) as session:
        add_member(session, owner.tenant_id, f"colleague-{uuid4().hex}@a.example", name="Colleague")
        add_member(session, owner.tenant_id, f"c@{owner.tenant_slug}.example", name="Colleague")
    (colleague,) = memberships(f"c@{owner.tenant_slug}.example")
    client = signed_in(app, owner)
    run_id = ask(client)
    answered(lease(owner, run_id), 1)
    conversation_id = client.get(f"/runs/{run_id}").get_json()["conversation_id"]
    for path in (f"/runs/{run_id}", f"/runs/{run_id}/events", f"/conversations/{conversation_id}"):
        with client.get(path) as own:
            assert own.status_code == 200
        for stranger in (signed_in(app, other), signed_in(app, colleague)):
            foreign, missing = stranger.get(path), stranger.get(re.sub(r"[0-9a-f-]{36}", str(uuid4()), path))
            assert foreign.status_code == missing.status_code == 404
            assert foreign.get_json() == missing.get_json()
            assert stranger.get("/runs").get_json() == {"runs": []}
            assert stranger.get("/conversations").get_json() == {"conversations": []}


def test_recent_questions_are_listed_newest_first(app: Flask, tenant: Principal) -> None:
    """With their states, without answers."""
    client = signed_in(app, tenant)
    first, second = ask(client, "First?"), ask(client, "Second?")
    answered(lease(tenant, first), 1)
    runs = client.get("/runs").get_json()["runs"]
    assert [(run["id"], run["state"]) for run in runs] == [(str(second), "queued"), (str(first), "answered")]
    assert "answer" not in runs[0]


def test_a_question_is_cancelled_by_who_asked(app: Flask, make_tenant: Callable[..., Principal], bus: FakeBus) -> None:
    """The page's stream ends with it; nobody else's question can be stopped."""
    one, two = make_tenant(), make_tenant()
    client = signed_in(app, one)
    run_id = ask(client)
    held = lease(one, run_id)
    tell(held, RunEvent(1, "step", {"name": "retrieve"}))
    assert signed_in(app, two).post(f"/runs/{run_id}/cancel").status_code == 404
    assert client.post(f"/runs/{run_id}/cancel").get_json()["state"] == "cancelled"
    assert client.post(f"/runs/{run_id}/cancel").get_json()["state"] == "cancelled"
    stream = client.get(f"/runs/{run_id}/events").text
    assert "event: cancelled" in stream
    assert client.get(f"/runs/{run_id}").get_json()["message"]


def test_an_answer_is_judged_by_who_asked(app: Flask, make_tenant: Callable[..., Principal]) -> None:
    """Up or down with a comment, the last word counts; what is not answered or not theirs cannot be judged."""
    one, two = make_tenant(), make_tenant()
    client = signed_in(app, one)
    run_id = ask(client)
    early = client.put(f"/runs/{run_id}/feedback", json={"rating": "up"})
    assert early.get_json()["type"] == "urn:noesis2:problem:not-answered"
    held = lease(one, run_id)
    with tenant_session(one.tenant_id) as session:
        finish(session, held, Answer("Nothing.", True, (), "extractive", 1, 1), 1)
    for rating in ("up", "down"):
        given = client.put(f"/runs/{run_id}/feedback", json={"rating": rating, "comment": "so"})
        assert given.get_json() == {"rating": rating}
    assert client.put(f"/runs/{run_id}/feedback", json={"rating": "sideways"}).status_code == 400
    assert signed_in(app, two).put(f"/runs/{run_id}/feedback", json={"rating": "up"}).status_code == 404
    with tenant_session(one.tenant_id) as session:
        assert rating_of(session, one, run_id) == "down"


def test_a_question_continues_its_conversation(app: Flask, make_tenant: Callable[..., Principal]) -> None:
    """By its id, which the run carries; a wrong one is refused."""
    client = signed_in(app, make_tenant())
    first = client.get(f"/runs/{ask(client)}").get_json()
    body = {"question": "And then?", "conversation_id": first["conversation_id"]}
    second = client.post("/questions", json=body)
    assert second.get_json()["conversation_id"] == first["conversation_id"]
    for wrong in ("nonsense", str(uuid4())):
        answer = client.post("/questions", json=body | {"conversation_id": wrong})
        assert answer.status_code in (400, 404, 422)


def test_conversations_are_found_again_with_their_runs(app: Flask, tenant: Principal) -> None:
    """By their first question, the one with the newest question first; a run with its citations and findings."""
    client = signed_in(app, tenant)
    first = ask(client, "First?")
    begun = client.get(f"/runs/{first}").get_json()["conversation_id"]
    other = ask(client, "Other?")
    body = {"question": "And then?", "conversation_id": begun}
    second = client.post("/questions", json=body).get_json()["id"]
    answered(lease(tenant, first), 1)
    held = lease(tenant, UUID(second))
    with tenant_session(tenant.tenant_id) as session:
        finish(session, held, Answer("Nothing.", True, (), "m", 1, 1, findings=("invented", "unmarked")), 1)
    found = client.get("/conversations").get_json()["conversations"]
    told = [(c["title"], c["questions"], c["run_id"], c["state"], c["no_evidence"]) for c in found]
    assert told == [("First?", 2, second, "answered", True), ("Other?", 1, str(other), "queued", False)]
    runs = client.get(f"/conversations/{begun}").get_json()["runs"]
    assert [run["question"] for run in runs] == ["First?", "And then?"]
    assert [len(run["citations"]) for run in runs] == [1, 0]
    assert [run["findings"] for run in runs] == [[], ["invented", "unmarked"]]
    assert runs[0] == client.get(f"/runs/{first}").get_json()
