"""A question becomes an answer: durable, fenced, with verified citations."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from functions.agent.answering import answer_question
from shared.conversations.runs import ask, events_after, read_run, take_lease
from shared.database import operator_session, tenant_session
from shared.documents.completion import finish_version
from shared.documents.intake import receive
from shared.documents.storing import Batch, Content, NewChunk, store
from shared.documents.vectors import chunks_without_vector, store_vectors, text_hash
from shared.errors import PermanentError, Superseded, TransientError
from shared.events import Access, AnswerQuestion, DocumentSubmitted
from shared.fakes import FakeBus, FakeModels, hashed_vector
from shared.retrieval.spaces import active_space
from shared.services import Services
from shared.tenants.directory import Principal

HOLIDAY = "Alle Beschäftigten haben Anspruch auf 30 Arbeitstage Urlaub. Der Antrag wird im Portal gestellt."


EVERYBODY = Access()


def index(tenant: Principal, external_id: str, *texts: str, access: Access = EVERYBODY) -> UUID:
    """Make a searchable document of these chunks, the way ingest and embed do; returns its id."""
    event = DocumentSubmitted(tenant_id=tenant.tenant_id, external_id=external_id, content="", access=access)
    chunks = [
        NewChunk(t, text_hash((), t), 0, len(t), len(t.split()), "de", (), {"page_starts": [[3, 0]]}) for t in texts
    ]
    with tenant_session(tenant.tenant_id) as session:
        reception = receive(session, event, "upstream")
    with tenant_session(tenant.tenant_id) as session:
        store(
            session,
            reception,
            Content(uuid4().hex, "", 1, "text/plain", "de", "", chunks),
            event.traceparent,
            Batch(9, 999),
        )
    with tenant_session(tenant.tenant_id) as session:
        space = active_space(session, tenant.tenant_id)
        ids = [
            row[0]
            for row in session.execute(
                text("select chunk_id from rag.chunks where version_id = :v"), {"v": reception.version_id}
            )
        ]
        missing = chunks_without_vector(session, tenant.tenant_id, reception.version_id, space.space_id, ids).chunks
        vectors = [hashed_vector(t, space.dimension) for _, t in missing]
        store_vectors(session, tenant.tenant_id, space.space_id, [chunk_id for chunk_id, _ in missing], vectors)
        assert finish_version(session, tenant.tenant_id, reception.version_id)
    return reception.document_id


def put(tenant: Principal, question: str = "Wie viele Arbeitstage Urlaub haben Beschäftigte?") -> AnswerQuestion:
    """Ask; returns the command."""
    with tenant_session(tenant.tenant_id) as session:
        run_id = ask(session, tenant, question)
    return AnswerQuestion(tenant_id=tenant.tenant_id, run_id=run_id)


def test_an_answer_carries_its_verified_quotation(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """Question in, answer with document, page and quoted words out, and everybody is told once."""
    document_id = index(tenant, "urlaub", HOLIDAY)
    assert isinstance(fake_services.models, FakeModels)
    fake_services.models.replies = ["„Alle Beschäftigten haben Anspruch auf 30 Arbeitstage Urlaub.“ [1]"]
    command = put(tenant)
    answer_question(command, fake_services)
    with tenant_session(tenant.tenant_id) as session:
        run = read_run(session, tenant, command.run_id)
        events = events_after(session, tenant, command.run_id, 0)
    assert run is not None
    assert (run.state, run.no_evidence) == ("answered", False)
    assert len(run.citations) == 1
    citation = run.citations[0]
    assert (citation.document_id, citation.page) == (document_id, 3)
    assert HOLIDAY[citation.quote_start : citation.quote_end] == citation.quote
    assert "30 Arbeitstage" in citation.quote
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert [e.kind for e in events if e.kind != "token"] == ["step", "step", "step", "answer"]
    assert "".join(e.data["text"] for e in events if e.kind == "token").startswith("„Alle")
    assert bus.names().count("answer-ready") == 1


@pytest.mark.parametrize(
    "reply",
    [
        "Beschäftigte haben „40 Arbeitstage Urlaub“ [1]",
        "„Alle Beschäftigten haben Anspruch auf 30 Arbeitstage Urlaub.“ [7]",
        "Es sind 40 Tage [1].",
        "Es sind 30 Tage, das weiß jeder.",
        "NO_EVIDENCE",
        "",
    ],
    ids=["altered number", "wrong passage number", "unsupported paraphrase", "no citation", "no evidence", "silence"],
)
def test_what_is_not_proven_is_not_answered(tenant: Principal, fake_services: Services, reply: str) -> None:
    """Without one verified citation there is no answer, and it is said plainly."""
    index(tenant, "urlaub", HOLIDAY)
    assert isinstance(fake_services.models, FakeModels)
    fake_services.models.replies = [reply]
    command = put(tenant)
    answer_question(command, fake_services)
    with tenant_session(tenant.tenant_id) as session:
        run = read_run(session, tenant, command.run_id)
    assert run is not None
    assert run.no_evidence is True
    assert run.citations == ()
    assert "keinen Beleg" in (run.answer or "")


def test_an_unproven_claim_beside_a_proven_one_is_marked(tenant: Principal, fake_services: Services) -> None:
    """The proven half keeps its citation, the other half says that it is not proven."""
    index(tenant, "urlaub", HOLIDAY)
    assert isinstance(fake_services.models, FakeModels)
    fake_services.models.replies = ["„Der Antrag wird im Portal gestellt.“ [1] Es sind 99 Tage [1]."]
    command = put(tenant)
    answer_question(command, fake_services)
    with tenant_session(tenant.tenant_id) as session:
        run = read_run(session, tenant, command.run_id)
    assert run is not None
    assert len(run.citations) == 1
    assert "(nicht belegt)" in (run.answer or "")


def test_a_tenant_without_the_document_finds_nothing(
    make_tenant: Callable[..., Principal], fake_services: Services
) -> None:
    """Another tenant's corpus does not exist: no passages, no model call, an honest answer."""
    owner, other = make_tenant(), make_tenant()
    index(owner, "urlaub", HOLIDAY)
    command = put(other)
    answer_question(command, fake_services)
    assert isinstance(fake_services.models, FakeModels)
    assert fake_services.models.asked == []
    with tenant_session(other.tenant_id) as session:
        run = read_run(session, other, command.run_id)
    assert run is not None
    assert run.no_evidence is True
    with tenant_session(owner.tenant_id) as session:
        assert read_run(session, owner, command.run_id) is None


def test_a_document_for_others_is_not_read(tenant: Principal, fake_services: Services) -> None:
    """Access lists hold in retrieval: a member who is not on the list gets no passage of it."""
    index(tenant, "secret", HOLIDAY, access=Access(members=("somebody@else.example",)))
    command = put(tenant)
    answer_question(command, fake_services)
    assert isinstance(fake_services.models, FakeModels)
    assert fake_services.models.asked == []


def test_a_redelivery_resumes_at_the_last_finished_step(tenant: Principal, fake_services: Services) -> None:
    """After a failure in generate, retrieval is not paid for again, and the draft is restarted for readers."""
    index(tenant, "urlaub", HOLIDAY)
    command = put(tenant)
    models = fake_services.models
    assert isinstance(models, FakeModels)
    models.replies = ["„Der Antrag wird im Portal gestellt.“ [1]"]
    real_chat = models.chat

    def cut(messages: list[dict[str, str]], **_: object) -> object:
        yield "„Der An"
        raise TransientError("cut off")

    models.chat = cut  # type: ignore[method-assign,assignment]
    with pytest.raises(TransientError):
        answer_question(command, fake_services)
    paid = len(models.embedded)
    models.chat = real_chat  # type: ignore[method-assign]
    answer_question(command, fake_services)
    assert len(models.embedded) == paid
    with tenant_session(tenant.tenant_id) as session:
        run = read_run(session, tenant, command.run_id)
        events = events_after(session, tenant, command.run_id, 0)
    assert run is not None
    assert run.state == "answered"
    kinds = [e.kind for e in events]
    assert kinds.index("draft-restarted") > kinds.index("token")
    assert [e.seq for e in events] == list(range(1, len(events) + 1))


def test_two_deliveries_of_one_question_answer_once(tenant: Principal, fake_services: Services, bus: FakeBus) -> None:
    """While one works the other is told so; afterwards there is nothing left to do."""
    index(tenant, "urlaub", HOLIDAY)
    command = put(tenant)
    with tenant_session(tenant.tenant_id) as session:
        take_lease(session, tenant.tenant_id, command.run_id)
    with pytest.raises(Superseded):
        answer_question(command, fake_services)
    _expire(command)
    answer_question(command, fake_services)
    with pytest.raises(Superseded):
        answer_question(command, fake_services)
    assert bus.names().count("answer-ready") == 1


def _expire(command: AnswerQuestion) -> None:
    with operator_session() as session:
        session.execute(
            text("update core.runs set lease_until = now() - interval '1 s' where run_id = :r"), {"r": command.run_id}
        )


def test_a_zombie_cannot_write(tenant: Principal, fake_services: Services) -> None:
    """Who lost the lease in the middle of its work is refused in the write itself."""
    index(tenant, "urlaub", HOLIDAY)
    command = put(tenant)
    models = fake_services.models
    assert isinstance(models, FakeModels)
    real_chat = models.chat

    def overtaken(messages: list[dict[str, str]], **_: object) -> object:
        _expire(command)
        models.chat = real_chat  # type: ignore[method-assign]
        models.replies = ["„Der Antrag wird im Portal gestellt.“ [1]"]
        answer_question(command, fake_services)  # somebody else, while this process slept
        models.replies = ["„Alle Beschäftigten haben Anspruch auf 30 Arbeitstage Urlaub.“ [1]"]
        yield from real_chat(messages)

    models.chat = overtaken  # type: ignore[method-assign,assignment]
    with pytest.raises(Superseded):
        answer_question(command, fake_services)
    with tenant_session(tenant.tenant_id) as session:
        run = read_run(session, tenant, command.run_id)
        events = events_after(session, tenant, command.run_id, 0)
    assert run is not None
    assert "Portal" in (run.answer or "")
    assert [e.kind for e in events].count("answer") == 1


def test_a_refused_model_call_fails_the_run_with_its_reason(tenant: Principal, fake_services: Services) -> None:
    """A permanent failure ends the run; the asker reads why."""
    index(tenant, "urlaub", HOLIDAY)
    command = put(tenant)
    assert isinstance(fake_services.models, FakeModels)
    fake_services.models.failures = [PermanentError("model-refused", "The model refused.", "Check CHAT_MODEL.")]
    answer_question(command, fake_services)
    with tenant_session(tenant.tenant_id) as session:
        run = read_run(session, tenant, command.run_id)
        events = events_after(session, tenant, command.run_id, 0)
    assert run is not None
    assert (run.state, run.reason) == ("failed", "model-refused")
    assert events[-1].kind == "failed"


@pytest.mark.parametrize(
    ("question", "reason"), [("", "empty-question"), (" \x00?! ", "empty-question"), ("x" * 4001, "question-too-long")]
)
def test_a_question_that_is_none_is_refused(tenant: Principal, bus: FakeBus, question: str, reason: str) -> None:
    """Bad input is a typed error that says what to do, and stores nothing."""
    with pytest.raises(PermanentError) as caught, tenant_session(tenant.tenant_id) as session:
        ask(session, tenant, question)
    assert caught.value.reason == reason
    assert caught.value.next_action
    assert bus.published == []


def test_the_same_idempotency_key_is_the_same_run(tenant: Principal, bus: FakeBus) -> None:
    """Asking twice with one key asks once."""
    with tenant_session(tenant.tenant_id) as session:
        first = ask(session, tenant, "Was?", idempotency_key="k")
        second = ask(session, tenant, "Was?", idempotency_key="k")
    assert first == second
    assert bus.names() == ["answer-question"]


@pytest.mark.parametrize(
    ("starts", "offset", "page"),
    [([], 5, None), ([[3, 0]], 0, 3), ([[3, 0], [4, 10]], 9, 3), ([[3, 0], [4, 10]], 10, 4)],
)
def test_a_quotation_stands_on_one_page(starts: list[list[int]], offset: int, page: int | None) -> None:
    """A chunk may span pages; its citation names the one the quoted words begin on."""
    from functions.agent.citations import page_at

    assert page_at(starts, offset) == page


def test_a_question_that_kills_its_workers_is_given_up(tenant: Principal, fake_services: Services) -> None:
    """After five workers died with it, the run fails with a reason instead of going round for ever."""
    index(tenant, "urlaub", HOLIDAY)
    command = put(tenant)
    for _ in range(6):
        with tenant_session(tenant.tenant_id) as session:
            take_lease(session, tenant.tenant_id, command.run_id)
        _expire(command)
    answer_question(command, fake_services)
    with tenant_session(tenant.tenant_id) as session:
        run = read_run(session, tenant, command.run_id)
    assert run is not None
    assert (run.state, run.reason) == ("failed", "run-crashes")


def test_an_unknown_failure_gives_the_run_back(tenant: Principal, fake_services: Services) -> None:
    """A bug in a step leaves no lease behind: the next delivery works on it at once."""
    index(tenant, "urlaub", HOLIDAY)
    command = put(tenant)
    models = fake_services.models
    assert isinstance(models, FakeModels)
    models.replies = ["„Der Antrag wird im Portal gestellt.“ [1]"]
    real_embed = models.embed_counted

    def broken(*_: object, **__: object) -> list[list[float]]:
        raise ZeroDivisionError

    models.embed_counted = broken  # type: ignore[method-assign,assignment]
    with pytest.raises(ZeroDivisionError):
        answer_question(command, fake_services)
    models.embed_counted = real_embed  # type: ignore[method-assign]
    answer_question(command, fake_services)
    with tenant_session(tenant.tenant_id) as session:
        run = read_run(session, tenant, command.run_id)
    assert run is not None
    assert run.state == "answered"
