"""What commands print: ids whole, foreign names as they are, JSON for programs, and trouble as a line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner, Result

from cli import main as entry
from cli.main import noesis
from cli.screen import printable, screen, table_of
from functions.agent.answering import answer_question
from shared.conversations.feedback import give_feedback
from shared.database import operator_session, tenant_session
from shared.errors import PermanentError
from shared.services import Services
from shared.tenants.directory import Principal, add_member, find_tenant
from tests.integration.agent_material import GOOD, models_of
from tests.integration.test_answering import HOLIDAY, index, put

TAG = "[/red]:warning:\x1b[2J"
PLAIN = "[/red]:warning:"
SHOWN = "[/red]:warning:\\u001b[2J"


def invoke(tenant: Principal, *words: str) -> Result:
    """Run a command for the tenant, as into a pipe."""
    return CliRunner().invoke(noesis, [*words, "-t", tenant.tenant_slug], catch_exceptions=False)


@pytest.fixture
def answered(tenant: Principal, fake_services: Services) -> str:
    """The id of an answered question with feedback, in a tenant whose names are all markup."""
    index(tenant, f"doc{TAG}", HOLIDAY)
    models_of(fake_services).replies = [GOOD]
    command = put(tenant, f"Wie viele Arbeitstage Urlaub? {TAG}")
    answer_question(command, fake_services)
    with tenant_session(tenant.tenant_id) as session:
        give_feedback(session, tenant, command.run_id, "up", f"good {TAG}")
    with operator_session() as operator:
        add_member(operator, tenant.tenant_id, "b@example.org", name=f"name {TAG}")
    return str(command.run_id)


def test_names_of_others_are_printed_and_do_not_act(tenant: Principal, answered: str) -> None:
    """Neither markup nor emoji codes nor escape sequences in a title, name, question or comment mean anything."""
    for words in (["documents"], ["tenants", "members"], ["feedback", "list"]):
        result = invoke(tenant, *words)
        assert (result.exit_code, SHOWN in result.output, "\x1b" in result.output) == (0, True, False), result.output
    for words in (["runs", "list"], ["runs", "show", answered]):  # a question is kept without its control characters
        result = invoke(tenant, *words)
        assert (result.exit_code, PLAIN in result.output, "\x1b" in result.output) == (0, True, False), result.output


def test_what_one_command_lists_another_takes(tenant: Principal, answered: str) -> None:
    """Ids are whole in a pipe: the first column of the lists of questions and documents."""
    assert invoke(tenant, "runs", "list").output.splitlines()[1].split()[0] == answered
    assert invoke(tenant, "feedback", "list").output.splitlines()[1].split()[0] == answered
    document = invoke(tenant, "documents").output.splitlines()[1].split()[0]
    history = invoke(tenant, "documents", "history", document)
    assert history.exit_code == 0
    version = history.output.splitlines()[2].split()[0]
    with pytest.raises(PermanentError, match="answers already"):  # so it is known
        invoke(tenant, "documents", "rollback", document, version)


def test_an_id_stays_in_one_piece_on_a_narrow_terminal() -> None:
    """Other columns give way, line by line; nothing ends in an ellipsis."""
    console, told = screen(), "a remark that needs more room than there is " * 3
    console.file, console.width = io.StringIO(), 60
    table = table_of("id", "remark", whole=("id",))
    table.add_row("0fc25b0e-c8cc-4d13-b96f-ed3c50cd7f8d", told)
    console.print(table)
    written = console.file.getvalue()
    assert "0fc25b0e-c8cc-4d13-b96f-ed3c50cd7f8d" in written
    assert (written.count("room"), "…" in written) == (3, False)


@pytest.mark.parametrize(
    ("words", "key"),
    [(("documents",), "external_id"), (("runs", "list"), "question"), (("runs", "show", "{run}"), "question")],
)
def test_programs_get_json(tenant: Principal, answered: str, words: tuple[str, ...], key: str) -> None:
    """With --json; what was shown by its number is in it as it was."""
    found = json.loads(invoke(tenant, *(word.format(run=answered) for word in words), "--json").stdout)
    assert PLAIN in (found if isinstance(found, dict) else found[0])[key]


def test_control_characters_keep_their_meaning_in_json() -> None:
    """What is printed instead of one is JSON's own way to write it."""
    for told in ("\x9b31m", "\u202eabc", "a\x7fb", "Zeile\nund\tTab", "weiches\u00adTrennen"):
        assert json.loads(printable(json.dumps(told, ensure_ascii=False))) == told
    assert printable("a\r\nb") == "a\nb"


@pytest.mark.parametrize(
    "words",
    [
        ("documents", "--limit", "-1"),
        ("documents", "--limit", "99999999999999999999"),
        ("dead-letters", "list", "--limit", "99999999999999999999"),
        ("submit", __file__, "--collection", "My Files"),
        ("submit", __file__, "--timeout", "-1"),
        ("web-sources", "add", "https://example.org", "--collection", "My Pages"),
        ("web-sources", "add", "https://example.org", "--every", "nan"),
        ("campaigns", "switch", "--grace-hours", "nan"),
        ("campaigns", "switch", "--grace-hours", "1e99"),
        ("budgets", "price", " ", "1"),
        ("search", "Urlaub", "--as-of", "0001-01-01"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_a_line(
    tenant: Principal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """Before anything is done, with a status that is not 0."""
    shared = words[0] in ("dead-letters", "budgets")
    whole = ["noesis", *words] + ([] if shared else ["-t", tenant.tenant_slug])
    monkeypatch.setattr(sys, "argv", whole)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    told = capsys.readouterr().err
    assert ended.value.code in (1, 2)
    assert told.strip()
    assert "Traceback" not in told


def test_an_empty_golden_set_is_told(tenant: Principal, tmp_path: os.PathLike[str]) -> None:
    """Its measures would be those of nothing."""
    empty = os.path.join(tmp_path, "questions.jsonl")
    open(empty, "w", encoding="utf-8").close()
    result = CliRunner().invoke(noesis, ["eval", "run", empty, "-t", tenant.tenant_slug])
    assert "has no question" in str(result.exception)


@pytest.mark.parametrize(
    ("words", "changed", "said"),
    [
        (["tenants", "list"], {"OPERATOR_DATABASE_URL": "postgresql+pg8000://u:p@127.0.0.1:9/x"}, "does not answer"),
        (["tenants", "list"], {"OPERATOR_DATABASE_URL": "no address"}, "cannot be read"),
        (["events", "reference", "--into", "/proc/nowhere"], {}, "/proc/nowhere: No such file"),
        (["events", "publish", "\udcff"], {}, "not UTF-8"),
        (["documents", "purge", "--approve", "x"], {}, "UUID"),
    ],
)
def test_trouble_around_a_command_is_one_line(words: list[str], changed: dict[str, str], said: str) -> None:
    """The database away, a wrong address, a folder that cannot be, an argument that is no text: never a stack."""
    command = [sys.executable, "-c", "from cli.main import main; main()", *words]
    ended = subprocess.run(
        command,
        env=os.environ | changed,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert ended.returncode in (1, 2)
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_who_cannot_be_asked_is_told_and_who_interrupts_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a terminal a question is a no; after an interruption nobody claims that nothing was done."""
    for cause, said in ((None, "Nothing was done"), (KeyboardInterrupt(), "")):
        abort = click.Abort()
        abort.__cause__ = cause

        def command(raised: click.Abort = abort, **_more: object) -> None:
            raise raised

        monkeypatch.setattr(entry, "noesis", command)
        monkeypatch.setattr(sys, "argv", ["noesis"])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(SystemExit) as ended:
            entry.main()
        told = capsys.readouterr().err
        assert (ended.value.code, said in told, bool(told)) == (130, True, bool(said))


@pytest.mark.parametrize(
    ("changed", "target", "code", "said"),
    [({"PYTHONIOENCODING": "ascii"}, os.devnull, 0, ""), ({}, "/dev/full", 1, "No space left on device")],
)
def test_where_output_cannot_go_is_told(
    tenant: Principal, answered: str, changed: dict[str, str], target: str, code: int, said: str
) -> None:
    """A terminal without umlauts gets their numbers; a full disk is a line, and a status that is not 0."""
    words = ["runs", "show", answered, "-t", tenant.tenant_slug]
    command = [sys.executable, "-c", "from cli.main import main; main()", *words]
    with open(target, "wb") as output:
        ended = subprocess.run(
            command,
            env=os.environ | changed,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert (ended.returncode, "Traceback" in ended.stderr, said in ended.stderr) == (code, False, True), ended.stderr


def test_a_reader_that_leaves_is_no_error_to_look_into(database: object) -> None:
    """`noesis … | head`: no stack and no complaint of the interpreter."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", "from cli.main import main; main()", "events", "schema", "document-submitted"]
    with os.fdopen(writing, "wb") as closed:
        ended = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


def test_a_tenant_is_found_by_what_the_list_prints(make_tenant: Callable[..., Principal]) -> None:
    """Slug and id, from the table and from JSON."""
    tenant = make_tenant()
    rows = CliRunner().invoke(noesis, ["tenants", "list"]).output.splitlines()
    row = next(row.split() for row in rows if row.split()[0] == tenant.tenant_slug)
    listed = json.loads(CliRunner().invoke(noesis, ["tenants", "list", "--json"]).stdout)
    assert next(one["tenant_id"] for one in listed if one["slug"] == tenant.tenant_slug) == row[1]
    with operator_session() as session:
        assert find_tenant(session, row[1]).tenant_id == tenant.tenant_id
