"""What every file of the house keeps to, read from the files themselves."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest

from shared.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
CODE = ("shared", "functions", "web", "cli", "local", "litellm_service", "schema")
LONGEST = 400
"""Lines of a module; HOUSE.md asks for about 300, this is where it stops being a matter of taste."""

BROAD_ALLOWED = {
    # file: how many times, and why there
    "shared/messaging.py": 1,  # whatever keeps the bus from taking a message, the row is safe and goes later
    "functions/ingest/parsing/ooxml.py": 1,  # the libraries' errors have no common base; all others are raised again
}

BINARY = {".png", ".ico", ".pdf", ".woff2", ".docx", ".xlsx", ".pptx", ".zip", ".eml"}

OPERATED = {
    # Settings that `noesis up` or Terraform sets, never a person in .env.
    "DATABASE_URL",
    "OPERATOR_DATABASE_URL",
    "MIGRATION_DATABASE_URL",
    "CLOUD_SQL_INSTANCE",
    "DATABASE_POOL",
    "NOESIS_HOME",  # says where platform.env lies, so it can only come from the environment
    "NOESIS_STAGE",
    "LITELLM_URL",
    "LITELLM_MASTER_KEY",
    "LITELLM_API_KEY",
    "BLOB_URL",
    "BLOB_SIGNER",
    "GOOGLE_CLOUD_PROJECT",
    "PUBSUB_EMULATOR_HOST",
    "PUBSUB_REST_URL",
    "CLOUD_TASKS_EMULATOR_HOST",
    "CLOUD_TASKS_LOCATION",
    "CLOUD_TASKS_SERVICE_ACCOUNT",
    "PUSH_ISSUER",
    "PUSH_JWKS_URL",
    "PUSH_AUDIENCE",
    "PUSH_SERVICE_ACCOUNT",
    "PUSH_TOKEN_SIGNATURE",
    "SECRET_KEY",
    "ALLOWED_HOSTS",
    "LOCAL_SIGN_IN",
    "BUS_TEST_CLOCK",
}


@lru_cache(maxsize=1)
def _files() -> dict[str, str]:
    """Every text file that is or will be tracked, with its content."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    names = [name for name in listed.stdout.split("\0") if name and Path(name).suffix not in BINARY]
    # A file may be listed and gone while somebody works here.
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in names if (ROOT / name).is_file()}


def _modules() -> dict[str, str]:
    found = {name: text for name, text in _files().items() if name.endswith(".py") and name.startswith(CODE)}
    assert len(found) > 50
    return found


def _hits(pattern: str, files: dict[str, str]) -> list[str]:
    regex = re.compile(pattern)
    return [
        f"{name}:{number}: {match.group()}"
        for name, text in files.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if (match := regex.search(line))
    ]


def test_no_file_names_a_package_index_or_this_machine() -> None:
    """Where packages come from and where the checkout lies is everyone's own affair."""
    # Put together here, so that this file does not find itself.
    hosts = "|".join(
        ["py" + r"pi\.org", r"files\.python" + r"hosted\.org", r"registry\.np" + r"mjs\.org", "--index" + "-url="]
    )
    folders = "|".join(["/ho" + r"me/\w+/", "/ro" + r"ot/", "/Us" + r"ers/\w+/", "/wo" + "rk/", r"C:\\Us" + "ers"])
    assert _hits(hosts, _files()) == []
    assert _hits(rf"(?:{folders})", _files()) == []


def test_every_module_says_what_it_is() -> None:
    """A docstring at its head; an empty file needs none."""
    silent = [name for name, text in _modules().items() if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert silent == []


def _is_broad(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    if isinstance(last, ast.Raise) and last.exc is None:
        return False  # it cleans up and passes on what it caught
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or (isinstance(kind, ast.Name) and kind.id in _EVERYTHING) for kind in kinds)


_EVERYTHING = {"Exception", "BaseException"}


def test_nobody_catches_everything() -> None:
    """An error is caught by name, or it goes up; the allowed places have a reason here."""
    found: dict[str, int] = {}
    for name, text in _modules().items():
        count = sum(isinstance(node, ast.ExceptHandler) and _is_broad(node) for node in ast.walk(ast.parse(text)))
        if count:
            found[name] = count
    assert found == BROAD_ALLOWED


def test_no_notes_to_ourselves_stay_behind() -> None:
    """What is to be done is an issue, not a comment."""
    assert (
        _hits(
            r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b", {n: t for n, t in _files().items() if "requirements" not in n}
        )
        == []
    )


def test_modules_stay_readable() -> None:
    """Whoever opens a module can hold it in mind."""
    modules = {name: text for name, text in _files().items() if name.endswith(".py")}
    assert [
        name for name, text in modules.items() if len(text.splitlines()) > LONGEST and not name.startswith("tests/")
    ] == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    """A module is named after what it holds."""
    vague = {"utils", "helpers", "common", "manager", "misc", "base", "util", "helper"}
    assert [name for name in _modules() if Path(name).stem in vague or vague & set(Path(name).parts)] == []


def _example() -> dict[str, str]:
    """The settings of .env.example, most of them commented out: `# NAME=default`."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    found = [re.fullmatch(r"(?:# )?([A-Z][A-Z0-9_]*)=(\S*)", line) for line in lines]
    return {match.group(1): match.group(2) for match in found if match}


def test_the_example_lists_every_setting_that_people_may_set() -> None:
    """A new setting comes with its line in .env.example, or with its reason above."""
    known = {name.upper() for name in Settings.model_fields}
    assert known >= OPERATED
    assert set(_example()) == known - OPERATED


def test_the_example_shows_the_defaults() -> None:
    """Uncommenting a line changes nothing; what stands there is what holds without it."""
    wrong = []
    for name, shown in _example().items():
        default = Settings.model_fields[name.lower()].default
        if shown != (str(default).lower() if isinstance(default, bool) else str(default)):
            wrong.append(f"{name}={shown}, not {default}")
    assert wrong == []


@pytest.mark.parametrize("uncommented", [False, True])
def test_the_example_loads(uncommented: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied to .env it is accepted, as it is and with every line in force."""
    text = (ROOT / ".env.example").read_text()
    (tmp_path / ".env").write_text(re.sub(r"(?m)^# ([A-Z][A-Z0-9_]*=)", r"\1", text) if uncommented else text)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NOESIS_HOME", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", "postgresql+pg8000://nobody@127.0.0.1/none")
    monkeypatch.setattr("shared.settings.CHECKOUT", tmp_path)
    assert load_settings().chat_model == "extractive"


DECISIONS = sorted((ROOT / "docs/decisions").glob("*.md"))


def test_a_number_names_one_decision() -> None:
    """Decisions are cited by number, for ever."""
    numbers = [path.name[:5] for path in DECISIONS]
    assert all(re.fullmatch(r"\d{4}-", number) for number in numbers)
    assert len(set(numbers)) == len(numbers) > 0


@pytest.mark.parametrize("path", DECISIONS, ids=lambda p: p.name[:4])
def test_a_decision_has_its_parts(path: Path) -> None:
    """Dated; context, decision, consequences, and when to look at it again."""
    text = path.read_text()
    assert re.search(r"(?m)^(?:Date: )?\d{4}-\d{2}-\d{2}$", text)
    headings = re.findall(r"(?m)^## (.+)$", text)
    assert headings == ["Context", "Decision", "Consequences", "Revisit when"]


DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    """A relative link names a file of this checkout."""
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_documents_name_only_files_that_exist(path: Path) -> None:
    """`shared/doors.py` in a text is there, or the text is out of date."""
    if path.name == "CHANGELOG.md":
        return  # it tells of what was
    tops = "|".join((*CODE, "tests", "docs", "terraform", "deploy", "requirements", "benchmarks"))
    named = re.findall(rf"`((?:{tops})/[\w./-]+\.\w+)`", path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
