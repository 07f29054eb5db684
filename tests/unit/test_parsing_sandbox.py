"""The child process that reads documents: limits that hold, children that are used again and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from functions.ingest.parsing import parse, sandbox, wire
from functions.ingest.parsing.sandbox import close_children, parse_in_child
from shared.errors import PermanentError
from tests.unit.parsing_material import make_eml, make_pdf, simple_docx, simple_xlsx

SMALL = b"# A heading\n\nand a paragraph under it"


@pytest.fixture(autouse=True)
def _fresh_children() -> Iterator[None]:
    """Each test begins and ends without waiting children."""
    close_children()
    yield
    close_children()
    assert not children()


def children() -> list[int]:
    """The process ids of our direct children that parse, whichever thread started them; a database may be another."""
    return [child.pid for child in psutil.Process().children() if b"parsing.child" in _command(child.pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def idle() -> list[int]:
    return [child._process.pid for child in sandbox._idle]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (SMALL, "a.md"),
        (make_pdf([[(72, 700, 20, "Title"), (72, 660, 11, "Text")]], outline=[(0, "Title")]), "a.pdf"),
        (simple_docx(), "a.docx"),
        (simple_xlsx(), "a.xlsx"),
        (make_eml("Hello", attachments=[("a.bin", "application/octet-stream", bytes(range(256)))]), "a.eml"),
    ],
)
def test_a_child_gives_the_same_value_as_the_parser(data: bytes, name: str) -> None:
    """Travelling between processes changes nothing, attachments included."""
    document = parse(data, name=name)
    assert parse_in_child(data, name=name) == document
    assert wire.decode(wire.encode(document)) == document


def test_a_child_gives_the_same_errors_as_the_parser() -> None:
    """Reason, message and next action arrive as they were raised."""
    for data in (b"", b"\x89PNG\r\n\x1a\n123", b"%PDF-1.7 nothing"):
        with pytest.raises(PermanentError) as inside:
            parse(data)
        with pytest.raises(PermanentError) as outside:
            parse_in_child(data)
        assert (outside.value.reason, outside.value.message) == (inside.value.reason, inside.value.message)
        assert outside.value.next_action == inside.value.next_action


def test_a_child_is_used_again_after_success_and_after_a_refusal() -> None:
    """A typed refusal is no failure of the reader."""
    parse_in_child(SMALL)
    first = idle()
    with pytest.raises(PermanentError):
        parse_in_child(b"")
    parse_in_child(SMALL)
    assert idle() == first
    assert len(first) == 1


def test_a_child_is_replaced_after_its_share_of_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """What leaks in a library leaks for a while only."""
    monkeypatch.setattr(sandbox, "_DOCUMENTS", 2)
    parse_in_child(SMALL)
    first = idle()
    parse_in_child(SMALL)
    assert idle() == []
    parse_in_child(SMALL)
    assert idle() != first


def test_time_runs_out_and_the_child_is_gone() -> None:
    """A document that takes too long is refused at the limit, and its child does not linger."""
    slow = ("a" + "\u0316\u0301" * 400_000).encode()
    begun = time.monotonic()
    with pytest.raises(PermanentError) as caught:
        parse_in_child(slow, name="a.txt", seconds=1)
    assert caught.value.reason == "parse-timeout"
    assert time.monotonic() - begun < 5
    assert not children()
    assert parse_in_child(SMALL).text


def test_memory_runs_out_and_the_next_document_is_read() -> None:
    """A document that needs more than the cap is refused; the one after it has a fresh child."""
    with pytest.raises(PermanentError) as caught:
        parse_in_child("wörd ".encode() * 4_000_000, name="a.txt", memory_mb=200)
    assert caught.value.reason == "parse-memory"
    assert not children()
    assert parse_in_child(SMALL).text


def test_a_child_that_died_while_waiting_costs_no_document() -> None:
    """Killed between two documents (memory of the machine, say): the next document is read by another child."""
    parse_in_child(SMALL)
    dead = idle()
    os.kill(dead[0], signal.SIGSEGV)
    assert parse_in_child(SMALL).text
    assert idle() != dead


@pytest.mark.parametrize(("takes", "shares"), [(15.0, [20.0, 5.0]), (25.0, [20.0])])
def test_a_second_try_has_what_the_first_one_left_of_the_time(
    takes: float, shares: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A used child dies over its document: a fresh one gets the rest of the time, both together no more than all."""
    now, given = [0.0], list[float]()

    class Dying:
        served = 1

        def parse(self, data: bytes, head: dict[str, Any], seconds: float) -> None:
            given.append(seconds)
            assert head["seconds"] == seconds
            now[0] += min(takes, seconds)
            raise EOFError if len(given) == 1 else TimeoutError

        def end(self) -> tuple[int, int]:
            return -signal.SIGSEGV, 0

    monkeypatch.setattr(sandbox, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(sandbox, "_Child", Dying)
    monkeypatch.setattr(sandbox, "_idle", [Dying()])
    with pytest.raises(PermanentError) as caught:
        parse_in_child(SMALL, seconds=20)
    assert (given, now[0], caught.value.reason) == (shares, 20.0, "parse-crash")
    assert isinstance(caught.value.__cause__, EOFError)


def test_a_child_that_dies_over_a_document_is_a_crash() -> None:
    """The document that kills its reader is refused, the next one is read."""
    deadly = ("a" + "\u0316\u0301" * 400_000).encode()
    refused: list[str] = []

    def read() -> None:
        try:
            parse_in_child(deadly, name="a.txt")
        except PermanentError as error:
            refused.append(error.reason)

    thread = threading.Thread(target=read)
    thread.start()
    deadline = time.monotonic() + 30
    while not children():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(children()[0], signal.SIGSEGV)
    thread.join()
    assert refused == ["parse-crash"]
    assert parse_in_child(SMALL).text


LARGE_PARENT = """
import sys
sys.path.insert(0, sys.argv[1])
held = bytearray(b"x") * (300 << 20)
from functions.ingest.parsing.sandbox import parse_in_child
from shared.errors import PermanentError
try:
    parse_in_child(b"# Text", name="a.md", memory_mb=500)
except PermanentError as error:
    print(error.reason)
"""


def test_what_the_parent_holds_does_not_count_as_the_childs_memory(tmp_path: Path) -> None:
    """A child that dies below a parent larger than half of its limit has crashed; it did not run out of memory."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'functions.ingest.parsing.child' in sys.orig_argv:\n"
        "    import functions.ingest.parsing as p\n    p.parse = lambda *a, **k: os.abort()\n"
    )
    # In a process of its own: the most that one has ever held never becomes less, and other tests measure it.
    done = subprocess.run(
        [sys.executable, "-c", LARGE_PARENT, str(tmp_path)], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "parse-crash", done.stderr


def test_a_mistake_in_a_parser_is_a_crash_that_names_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw is refused too; the cause says where it struck, without the message of the error."""
    (tmp_path / "sitecustomize.py").write_text(
        "import functions.ingest.parsing as p\n"
        "def parse(*args, **kwargs):\n    raise ZeroDivisionError('the secret text')\np.parse = parse\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(PermanentError) as caught:
        parse_in_child(SMALL)
    assert caught.value.reason == "parse-crash"
    assert "ZeroDivisionError at " in str(caught.value.__cause__)
    assert "secret" not in str(caught.value.__cause__)


def test_a_child_sees_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the service does not reach the process that touches hostile bytes."""
    monkeypatch.setenv("LITELLM_MASTER_KEY", "sk-very-secret")
    parse_in_child(SMALL)
    assert b"very-secret" not in Path(f"/proc/{idle()[0]}/environ").read_bytes()


def test_threads_share_the_children_without_mixing_answers() -> None:
    """Eight threads, each gets its own document back; no more children wait than are wanted."""
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(5):
            text = f"document {number} turn {turn}"
            if parse_in_child(text.encode()).text != text:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(idle()) <= sandbox._IDLE
    assert len(children()) == len(idle())


def test_a_forked_worker_starts_children_of_its_own() -> None:
    """gunicorn's preload forks after a child exists: parent and worker must not share a socket."""
    parse_in_child(SMALL)
    before = idle()
    reading, writing = os.pipe()
    worker = os.fork()
    if worker == 0:
        fresh = idle() == [] and bool(parse_in_child(SMALL).text) and idle() != before
        close_children()
        os.write(writing, b"y" if fresh else b"n")
        os._exit(0)
    os.waitpid(worker, 0)
    assert os.read(reading, 1) == b"y"
    os.close(reading)
    os.close(writing)
    assert parse_in_child(SMALL).text
    assert idle() == before


def test_children_end_with_their_parent() -> None:
    """The parent is killed without a chance to clean up: its waiting child notices and goes."""
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        parse_in_child(SMALL)
        os.write(writing, str(idle()[0]).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    orphan = int(os.read(reading, 20))
    os.close(reading)
    os.close(writing)
    deadline = time.monotonic() + 10
    while running(orphan):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.01)


def running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # gone before it was opened, or before it was read
        return False


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data.replace(b'"paragraph"', b'"nonsense"'),
        lambda data: data.replace(b'"text":"', b'"text":7,"x":"'),
        lambda data: bytes(8) + data,
    ],
)
def test_a_lying_child_is_not_believed(damage: object) -> None:
    """An answer that is no document raises what the sandbox treats as a crash."""
    assert callable(damage)
    with pytest.raises((ValueError, KeyError, TypeError)):
        wire.decode(damage(wire.encode(parse(SMALL, name="a.md"))))
