"""The page in a real browser against a real server; the test plays the agent and the ingestion."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import UUID

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Route, expect, sync_playwright
from sqlalchemy import text

from shared.conversations.ending import fail, finish
from shared.conversations.runs import Answer, Citation, Lease, RunEvent, append_events, take_lease
from shared.database import tenant_session
from shared.documents.completion import finish_version
from shared.documents.ending import fail_version
from shared.documents.intake import Reception, receive
from shared.documents.storing import Batch, Content, NewChunk, store
from shared.errors import PermanentError
from shared.events import DocumentSubmitted
from shared.fakes import FakeBus
from shared.tenants.directory import Principal

Scheme = Literal["dark", "light"]
EXPECT_MS = 20_000
expect.set_options(timeout=EXPECT_MS)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: `deploy/install-browser` brings one")

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "build" / "screenshots"
QUOTE = "Der jährliche Erholungsurlaub beträgt 30 Arbeitstage bei einer Fünftagewoche."
BEFORE = """§ 14 Urlaub

(1) Mitarbeitende haben in jedem Kalenderjahr Anspruch auf bezahlten Erholungsurlaub 🌴 nach Maßgabe dieser Ordnung. """
AFTER = """ Bei einer anderen Verteilung der Arbeitszeit erhöht oder vermindert sich der Anspruch entsprechend.

(2) Der Urlaub ist im laufenden Kalenderjahr zu nehmen. Eine Übertragung bis zum 31. März des Folgejahres ist nur
statthaft, wenn dringende betriebliche oder in der Person liegende Gründe dies rechtfertigen. Nicht genommene Tage
verfallen danach, soweit das Gesetz nichts anderes bestimmt.

(3) Schwerbehinderte Menschen erhalten einen Zusatzurlaub von fünf Arbeitstagen."""
PASSAGE = BEFORE + QUOTE + AFTER
SECOND_QUOTE = "Nicht genommene Tage\nverfallen danach, soweit das Gesetz nichts anderes bestimmt."


@dataclass(frozen=True)
class Site:
    """A running web server and the member that uses it."""

    url: str
    member: Principal


@pytest.fixture(scope="module")
def server(database: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the real server under gunicorn; nobody listens where the bus should be."""
    from local.postgres import free_port

    folder, port = tmp_path_factory.mktemp("web"), free_port()
    environment = os.environ | {
        "SECRET_KEY": "a-key-for-this-test-only-0123456789abcdef",
        "LOCAL_SIGN_IN": "true",
        "BLOB_URL": folder.joinpath("blobs").as_uri(),
        "PUBSUB_EMULATOR_HOST": "127.0.0.1:9",
        "PUBLISH_TIMEOUT": "0.2",
        "LITELLM_URL": "http://127.0.0.1:9",
        "DOCUMENT_MAX_BYTES": str(1024 * 1024),
        "LOG_FORMAT": "console",
    }
    command = [sys.executable, "-m", "gunicorn", "web:create_app()", "--worker-class", "gthread", "--threads", "12"]
    command += ["--bind", f"127.0.0.1:{port}", "--graceful-timeout", "1", "--preload", "--no-control-socket"]
    log = folder / "web.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        # A refused connection is tried again with growing pauses: the server is starting.
        with httpx.Client(transport=httpx.HTTPTransport(retries=9), timeout=60) as client:
            assert client.get(f"http://127.0.0.1:{port}/health/liveliness").status_code == 200
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
    shown = log.read_text(encoding="utf-8")
    assert " ERROR " not in shown, shown


@pytest.fixture
def site(server: str, tenant: Principal) -> Site:
    """The server and a member of a fresh tenant."""
    return Site(server, tenant)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a head, a network of its own, or anything to report."""
    flags = "no-sandbox disable-gpu no-first-run disable-background-networking disable-component-update disable-sync"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=[f"--{flag}" for flag in flags.split()])
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser, site: Site) -> Iterator[Callable[..., Page]]:
    """Opens the signed-in page in a browser context of its own; fails when the page reports any error."""
    complaints: list[str] = []
    contexts: list[BrowserContext] = []

    def hear(line: ConsoleMessage) -> None:
        if line.type == "error":
            complaints.append(line.text)

    def open_(language: str = "en", scheme: Scheme = "light", width: int = 1280, height: int = 860) -> Page:
        context = browser.new_context(locale=language, color_scheme=scheme, viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", hear)
        page.goto(site.url)
        page.locator("#email").fill(site.member.email)
        page.locator(".sign-in button").click()
        page.wait_for_selector("#ask")
        return page

    yield open_
    for context in contexts:
        context.close()
    # Chromium reports refusals as well; tests of them say so themselves.
    assert not [line for line in complaints if not re.search("status of (403|503)", line)]


def shoot(page: Page, name: str, *, full_page: bool = False) -> None:
    """Keep what it looks like for people to judge."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=full_page)


def ingest(member: Principal, name: str, title: str, texts: list[str], vectors: int | None = None) -> list[UUID]:
    """What ingest and embed would store; `vectors` chunks are embedded (all by default). Returns the chunk ids."""
    event = DocumentSubmitted(
        tenant_id=member.tenant_id, external_id=name, file_name=name, title=title, uri="file:///unread"
    )
    chunks = [
        NewChunk(t, hashlib.sha256(t.encode()).hexdigest(), 0, len(t), 99, "de", ("Abschnitt III", "§ 14"), {"page": 7})
        for t in texts
    ]
    with tenant_session(member.tenant_id) as session:
        reception = receive(session, event, "web")
        content = Content(name, "file:///unread", 4711, "application/pdf", "de", title, chunks)
        store(session, reception, content, event.traceparent, Batch(128, 100_000))
    embed(member, reception, len(texts) if vectors is None else vectors)
    with tenant_session(member.tenant_id) as session:
        found = session.execute(
            text("select chunk_id from rag.chunks where tenant_id = :t and version_id = :v order by ordinal"),
            {"t": member.tenant_id, "v": reception.version_id},
        )
        return list(found.scalars())


def embed(member: Principal, reception: Reception, count: int) -> None:
    """Give the first `count` chunks of the version a vector, and finish it if that is all of them."""
    with tenant_session(member.tenant_id) as session:
        session.execute(
            text(
                "insert into rag.embeddings (tenant_id, space_id, chunk_id, embedding) select c.tenant_id, s.space_id, "
                "c.chunk_id, array_fill(0.125::real, array[64])::vector from rag.chunks c join rag.tenant_spaces s "
                "on s.tenant_id = c.tenant_id where c.tenant_id = :t and c.version_id = :v order by c.ordinal limit :n"
            ),
            {"t": member.tenant_id, "v": reception.version_id, "n": count},
        )
        finish_version(session, member.tenant_id, reception.version_id)


def refuse(member: Principal, name: str) -> None:
    """What ingest would record about a scanned PDF."""
    event = DocumentSubmitted(tenant_id=member.tenant_id, external_id=name, file_name=name, uri="file:///unread")
    with tenant_session(member.tenant_id) as session:
        reception = receive(session, event, "web")
        error = PermanentError("no-text", "The document has pages but no text layer.", "Run OCR over it.")
        fail_version(session, member.tenant_id, reception.version_id, error)


@contextmanager
def agent(member: Principal, page: Page) -> Iterator[Lease]:
    """Holds the lease of the run that the page shows."""
    run_id = UUID(page.url.partition("run=")[2])
    with tenant_session(member.tenant_id) as session:
        lease = take_lease(session, member.tenant_id, run_id)
    yield lease


def tell(lease: Lease, seq: int, *events: tuple[str, dict[str, str]]) -> None:
    """Append run events from `seq` on."""
    rows = [RunEvent(seq + i, kind, data) for i, (kind, data) in enumerate(events)]
    with tenant_session(lease.tenant_id) as session:
        append_events(session, lease, rows)


def citation(number: int, place: tuple[UUID, UUID, UUID], quote: str) -> Citation:
    """A citation of the passage of these tests, which stands at `place` (document, version, chunk)."""
    start = PASSAGE.index(quote)
    path = ("Abschnitt III", "§ 14 Urlaub")
    return Citation(number, *place, "Urlaubsordnung 2026", path, 7, quote, start, start + len(quote))


def ask(page: Page, question: str) -> None:
    """Ask as people do, by keyboard."""
    before = page.url
    page.locator("#question").fill(question)
    page.locator("#question").press("Enter")
    page.wait_for_function("before => location.href !== before", arg=before)


ANSWER = """Sie haben Anspruch auf **30 Arbeitstage** Erholungsurlaub im Jahr, bei einer Fünftagewoche [1].

- Der Urlaub ist im laufenden Kalenderjahr zu nehmen.
- Nicht genommene Tage verfallen nach dem 31. März des Folgejahres [2].

<img src=x onerror=alert(1)> bleibt Text."""


def answer(lease: Lease, chunk_id: UUID, seq: int) -> None:
    """Finish the run with the answer of these tests."""
    with tenant_session(lease.tenant_id) as session:
        row = session.execute(
            text("select document_id, version_id from rag.chunks where tenant_id = :t and chunk_id = :c"),
            {"t": lease.tenant_id, "c": chunk_id},
        ).one()
        place = (row.document_id, row.version_id, chunk_id)
        found = (citation(1, place, QUOTE), citation(2, place, SECOND_QUOTE))
        finish(session, lease, Answer(ANSWER, False, found, "extractive", 1, 1), seq)


def test_a_question_becomes_a_streamed_answer_whose_citation_opens_the_passage(
    site: Site, open_page: Callable[..., Page], bus: FakeBus
) -> None:
    """Steps, draft, final answer, chip, highlighted quotation, Escape, focus; in German, by keyboard."""
    (chunk_id,) = ingest(site.member, "urlaub.pdf", "Urlaubsordnung 2026", [PASSAGE])
    ingest(site.member, "reise.pdf", "Reisekostenrichtlinie", [f"Text {n}" for n in range(40)], vectors=26)
    refuse(site.member, "Scan_2026-10-02 Betriebsvereinbarung.pdf")
    page = open_page("de")
    expect(page.locator("#document-list li")).to_have_count(3)
    shoot(page, "start-light-de")
    ask(page, "Wie viele Tage Urlaub habe ich im Jahr?")
    with agent(site.member, page) as lease:
        seq = lease.next_seq
        tell(lease, seq, ("step", {"name": "retrieve"}), ("step", {"name": "generate"}), ("token", {"text": "Sie "}))
        tell(lease, seq + 3, ("token", {"text": "haben Anspruch auf **30 Arbeitstage** [1]."}))
        expect(page.locator("#steps li")).to_have_text(["Ihre Dokumente durchsuchen", "Lesen und schreiben"])
        expect(page.locator("#answer strong")).to_have_text("30 Arbeitstage")
        shoot(page, "draft-light-de")
        page.reload()
        expect(page.locator("#answer strong")).to_have_text("30 Arbeitstage")
        answer(lease, chunk_id, seq + 5)
    expect(page.locator("#answer button.chip")).to_have_count(2)
    expect(page.locator("#answer")).to_contain_text("<img src=x onerror=alert(1)>")
    expect(page.locator("#sources li")).to_have_count(2)
    shoot(page, "answer-light-de")
    page.locator("#answer button.chip").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#passage mark")).to_have_text(QUOTE)
    expect(page.locator("#passage-title")).to_be_focused()
    expect(page.locator("#passage-place")).to_contain_text("Seite 7")
    shoot(page, "passage-light-de")
    page.keyboard.press("Escape")
    expect(page.locator("#passage")).to_be_hidden()
    expect(page.locator("#answer button.chip").first).to_be_focused()


def test_a_phone_in_the_dark_gets_the_passage_as_a_dialog(
    site: Site, open_page: Callable[..., Page], bus: FakeBus
) -> None:
    """390 px, dark, English: everything within the width, the passage over the page, closed by its button."""
    (chunk_id,) = ingest(site.member, "leave.pdf", "Urlaubsordnung 2026", [PASSAGE])
    page = open_page("en", "dark", 390, 844)
    expect(page.locator("#document-list li")).to_have_count(1)
    ask(page, "How many days of leave do I have?")
    with agent(site.member, page) as lease:
        answer(lease, chunk_id, lease.next_seq)
    expect(page.locator("#answer button.chip")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shoot(page, "answer-dark-phone", full_page=True)
    page.locator("#answer button.chip").nth(1).click()
    expect(page.locator("#passage mark")).to_have_text(SECOND_QUOTE)
    assert page.evaluate("document.querySelector('#passage').matches(':modal')")
    shoot(page, "passage-dark-phone")
    page.locator("#passage-close").click()
    expect(page.locator("#passage")).to_be_hidden()
    page.set_viewport_size({"width": 1280, "height": 860})
    page.locator("#sources button").first.click()
    expect(page.locator("#passage mark")).to_have_text(QUOTE)
    shoot(page, "passage-dark")


def test_no_evidence_and_failure_say_what_to_do(site: Site, open_page: Callable[..., Page], bus: FakeBus) -> None:
    """An honest statement is not an error; a failed run shows its reason and asks again; history goes back."""
    page = open_page("en")
    expect(page.locator("#no-documents")).to_be_visible()
    ask(page, "What does the moon weigh?")
    with agent(site.member, page) as lease, tenant_session(site.member.tenant_id) as session:
        nothing = Answer("I found no evidence for this in the documents you may see.", True, (), "extractive", 1, 1)
        finish(session, lease, nothing, lease.next_seq)
    expect(page.locator("#answer.none")).to_contain_text("no evidence")
    expect(page.locator("#notice")).to_have_text("Ask in other words, or add a document that covers it.")
    expect(page.locator("#notice.failed")).to_have_count(0)
    shoot(page, "no-evidence-light-en")
    ask(page, "And the sun?")
    with agent(site.member, page) as lease, tenant_session(site.member.tenant_id) as session:
        error = PermanentError("model-refused", "The model refused the request (HTTP 400).", "Check CHAT_MODEL.")
        fail(session, site.member.tenant_id, lease.run_id, error)
    expect(page.locator("#notice.failed")).to_contain_text(
        "The model refused the request (HTTP 400). Check CHAT_MODEL."
    )
    shoot(page, "failed-light-en")
    page.locator("#notice button").click()
    expect(page.locator("#turns li")).to_have_count(2)
    expect(page.locator("#recent li")).to_have_count(1)
    expect(page.locator("#asked")).to_have_text("And the sun?")
    page.go_back()
    expect(page.locator("#notice.failed")).to_be_visible()
    page.go_back()
    expect(page.locator("#answer.none")).to_contain_text("no evidence")


def conversation_of(member: Principal, page: Page) -> UUID:
    """The conversation of the run that the page shows."""
    with tenant_session(member.tenant_id) as session:
        found: UUID = session.execute(
            text("select conversation_id from core.runs where tenant_id = :t and run_id = :r"),
            {"t": member.tenant_id, "r": UUID(page.url.partition("run=")[2])},
        ).scalar_one()
    return found


def test_a_follow_up_goes_on_with_the_conversation(site: Site, open_page: Callable[..., Page], bus: FakeBus) -> None:
    """What was said before stays in sight with its sources; a button begins anew; each conversation is found again."""
    (chunk_id,) = ingest(site.member, "urlaub.pdf", "Urlaubsordnung 2026", [PASSAGE])
    page = open_page("de")
    expect(page.locator("#fresh")).to_be_hidden()
    ask(page, "Wie viele Tage Urlaub habe ich im Jahr?")
    first = conversation_of(site.member, page)
    with agent(site.member, page) as lease:
        answer(lease, chunk_id, lease.next_seq)
    expect(page.locator("#fresh")).to_have_text("Neues Gespräch")
    expect(page.locator("#question")).to_have_attribute("placeholder", "Stellen Sie eine Anschlussfrage")
    expect(page.locator("#turns")).to_be_hidden()
    ask(page, "Und wann verfallen sie?")
    assert conversation_of(site.member, page) == first
    expect(page.locator("#turns-title")).to_have_text("In diesem Gespräch")
    expect(page.locator("#turns h3")).to_have_text(["Wie viele Tage Urlaub habe ich im Jahr?"])
    page.locator("#turns button.chip").nth(1).click()
    expect(page.locator("#passage mark")).to_have_text(SECOND_QUOTE)
    page.keyboard.press("Escape")
    with agent(site.member, page) as lease:
        answer(lease, chunk_id, lease.next_seq)
    expect(page.locator("#recent li")).to_have_count(1)
    expect(page.locator("#recent a[aria-current] .hint")).to_contain_text("2 Fragen")
    expect(page.locator("#answer button.chip")).to_have_count(2)
    shoot(page, "conversation-light-de", full_page=True)
    page.reload()
    expect(page.locator("#turns h3")).to_have_text(["Wie viele Tage Urlaub habe ich im Jahr?"])
    page.locator("#turns h3 a").click()
    expect(page.locator("#asked")).to_have_text("Wie viele Tage Urlaub habe ich im Jahr?")
    expect(page.locator("#turns h3")).to_have_text(["Und wann verfallen sie?"])
    page.locator("#fresh").click()
    expect(page.locator("#question")).to_be_focused()
    expect(page.locator("#question")).to_have_attribute("placeholder", "Stellen Sie Ihren Dokumenten eine Frage")
    for hidden in ("#result", "#turns", "#fresh"):
        expect(page.locator(hidden)).to_be_hidden()
    ask(page, "Wer genehmigt Dienstreisen?")
    assert conversation_of(site.member, page) != first
    expect(page.locator("#turns")).to_be_hidden()
    expect(page.locator("#recent .title")).to_have_text(
        ["Wer genehmigt Dienstreisen?", "Wie viele Tage Urlaub habe ich im Jahr?"]
    )
    page.locator("#recent a").nth(1).click()
    expect(page.locator("#asked")).to_have_text("Und wann verfallen sie?")
    expect(page.locator("#turns h3")).to_have_text(["Wie viele Tage Urlaub habe ich im Jahr?"])


def test_what_checking_found_is_told_below_the_answer(site: Site, open_page: Callable[..., Page], bus: FakeBus) -> None:
    """Counted and named, on a phone in the dark too; a draft dropped whole says so; nothing found, nothing said."""
    (chunk_id,) = ingest(site.member, "leave.pdf", "Urlaubsordnung 2026", [PASSAGE])
    page = open_page("en", "dark", 390, 844)
    ask(page, "How many days?")
    with agent(site.member, page) as lease:
        answer(lease, chunk_id, lease.next_seq)
    expect(page.locator("#judge")).to_be_visible()
    expect(page.locator("#checked")).to_be_hidden()
    ask(page, "And in the second year?")
    with agent(site.member, page) as lease, tenant_session(site.member.tenant_id) as session:
        said = "Thirty days. It rains often (not proven). It snows (not proven)."
        findings = ("invented", "unmarked", "invented")
        finish(session, lease, Answer(said, False, (), "m", 1, 1, findings=findings), lease.next_seq)
    expect(page.locator("#checked")).to_have_text("Checked: 2 × invented quotation, 1 × statement without a source")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shoot(page, "checked-dark-phone", full_page=True)
    ask(page, "And the moon?")
    with agent(site.member, page) as lease, tenant_session(site.member.tenant_id) as session:
        finish(session, lease, Answer("Nothing.", True, (), "m", 1, 1, findings=("altered-number",)), lease.next_seq)
    expect(page.locator("#checked")).to_have_text(
        "A draft was dropped because nothing in it was proven: 1 × altered number"
    )


def test_a_refused_stream_is_taken_up_again(site: Site, open_page: Callable[..., Page], bus: FakeBus) -> None:
    """The server is away for a moment (503, which ends an EventSource): the page says so, and goes on by itself."""
    page = open_page("en")
    refused: list[str] = []

    def refuse_once(route: Route) -> None:
        if refused:
            route.continue_()
        else:
            refused.append(route.request.url)
            route.fulfill(status=503, body="")

    page.route("**/events?*", refuse_once)
    ask(page, "Are you there?")
    expect(page.locator("#notice")).to_have_text("The connection was lost. Trying again …")
    with agent(site.member, page) as lease:
        tell(lease, lease.next_seq, ("token", {"text": "Yes, "}), ("token", {"text": "I am."}))
        expect(page.locator("#answer.draft")).to_have_text("Yes, I am.")
        expect(page.locator("#notice")).to_be_hidden()
        with tenant_session(site.member.tenant_id) as session:
            finish(session, lease, Answer("I was away.", False, (), "extractive", 1, 1), lease.next_seq + 2)
    expect(page.locator("#answer")).to_have_text("I was away.")


def test_uploads_appear_as_received_while_the_bus_is_down(
    site: Site, open_page: Callable[..., Page], bus: FakeBus, tmp_path: Path
) -> None:
    """Several files at once, one too large: that one says so before it is sent, the others are in the list."""
    page = open_page("en")
    for name, size in (("handbook.md", 2000), ("prices.txt", 900_000), ("film.pdf", 1024 * 1024 + 1)):
        (tmp_path / name).write_bytes(b"x" * size)
    page.set_input_files("#files", [tmp_path / "handbook.md", tmp_path / "prices.txt", tmp_path / "film.pdf"])
    expect(page.locator("#document-list li[data-state=received]")).to_have_count(2)
    expect(page.locator("#uploads li")).to_have_count(1)
    expect(page.locator("#uploads .why")).to_have_text(
        "The file is larger than 1 MB. Split it into smaller documents and upload those."
    )
    shoot(page, "uploads-light-en")
    page.locator("#uploads button").click()
    expect(page.locator("#uploads li")).to_have_count(0)
    ingest(site.member, "handbook.md", "Handbook", ["Be kind."])
    expect(page.locator("#document-list li[data-state=searchable]")).to_contain_text("Handbook")


def test_the_language_switch_holds(site: Site, open_page: Callable[..., Page]) -> None:
    """The browser asks for English, the person for German; signing out keeps the choice."""
    page = open_page("en")
    page.locator(".languages [value=de]").click()
    expect(page.locator(".ask label")).to_have_text("Was möchten Sie wissen?")
    page.locator(".account button").click()
    expect(page.locator(".sign-in .primary")).to_have_text("Anmelden")
    page.locator("#email").fill("nobody@example.org")
    page.locator(".sign-in .primary").click()
    expect(page.locator("#error")).to_have_text("Kein Mandant hat ein Mitglied mit dieser Adresse.")
    shoot(page, "sign-in-light-de")
