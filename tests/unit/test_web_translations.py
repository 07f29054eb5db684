"""Every word of the pages is there in German, and every failure that a page can show."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po

from functions.ingest.parsing.reasons import REASONS
from shared.dead_letters.replay import EXHAUSTED
from web.languages import FOLDER, LANGUAGES

ROOT = Path(__file__).parents[2]
METHODS = [("**.py", "python"), ("templates/**.html", "jinja2")]
SHOWN = (
    # Whose failures end on a document or a run, and so on a page; the rest ends at a terminal or in the archive.
    "functions/ingest",
    "functions/embed",
    "functions/agent",
    "shared/storage",
    "shared/llm.py",
    "shared/completions.py",
    "shared/embeddings.py",
    "shared/documents",
    "shared/conversations",
    "shared/retrieval/spaces.py",
    "shared/retrieval/search.py",
)


def german() -> dict[tuple[str | None, str], str]:
    """The German catalogue by context and message."""
    with (FOLDER / "translations" / "de" / "LC_MESSAGES" / "messages.po").open("rb") as file:
        catalogue = read_po(file, locale="de")
    assert not [message.id for message in catalogue if message.fuzzy and message.id]
    return {(message.context, str(message.id)): str(message.string) for message in catalogue if message.id}


def used() -> set[str]:
    """Every message of the sources."""
    found = extract_from_dir(FOLDER, METHODS, keywords={"_": None, "gettext": None})
    return {str(message) for _, _, message, _, _ in found}


def codes() -> set[str]:
    """Every reason code that a page can show: those of parsing, and the literal ones of the places above."""
    found = set(REASONS) | {EXHAUSTED}
    for place in SHOWN:
        for path in (ROOT / place).rglob("*.py") if (ROOT / place).is_dir() else [ROOT / place]:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("PermanentError") and node.args:
                    first = node.args[0]
                    if isinstance(first, ast.Constant):
                        found.add(str(first.value))
    return found


def test_every_word_is_german_too() -> None:
    """Nothing untranslated, nothing left over, the same gaps in both."""
    catalogue, words = german(), used()
    assert len(words) > 50
    plain = {message: string for (context, message), string in catalogue.items() if context is None}
    assert words - plain.keys() == set(), "missing in messages.po"
    assert plain.keys() - words == set(), "no longer used"
    for message, string in plain.items():
        assert string, message
        assert sorted(re.findall(r"%\(\w+\)s|\{\w+\}", message)) == sorted(re.findall(r"%\(\w+\)s|\{\w+\}", string))


def test_every_failure_is_german_too() -> None:
    """Reason codes have a sentence and a next action under their contexts."""
    catalogue = german()
    known = {message for context, message in catalogue if context == "reason"}
    assert codes() - known == set(), "add them to web/translations/de, contexts reason and next-action"
    for context in ("reason", "next-action"):
        assert all(catalogue.get((context, code)) for code in known)


def test_every_language_of_the_switch_has_a_catalogue() -> None:
    """No language is offered that is not there, and none is compiled in the repository."""
    folders = {path.name for path in (FOLDER / "translations").iterdir()}
    assert folders == set(LANGUAGES)
    assert not list(FOLDER.rglob("*.mo"))


def test_the_script_uses_only_words_that_it_gets() -> None:
    """Every literal name in the page's script is a word of the page."""
    script = (FOLDER / "static" / "page.js").read_text(encoding="utf-8")
    words = (FOLDER / "words.py").read_text(encoding="utf-8")
    names = set(re.findall(r'say\("([^"]+)"', script)) | set(re.findall(r'words\["([^"]+)"\]', script))
    assert len(names) > 25
    assert {name for name in names if f'"{name}": _(' not in words} == set()


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (https://www.w3.org/TR/WCAG22/#dfn-relative-luminance)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_text_can_be_read_on_its_ground() -> None:
    """WCAG AA in light and dark: 4.5 for text, 3 for the borders of fields."""
    style = (FOLDER / "static" / "style.css").read_text(encoding="utf-8")
    themes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in style.split("@media", 2)[:2]]
    pairs = [(text, ground, 4.5) for text in ("ink", "soft", "accent") for ground in ("ground", "sheet", "tint")]
    pairs += [("warn", "ground", 4.5), ("warn", "warn-tint", 4.5), ("ink", "warn-tint", 4.5), ("ink", "mark", 4.5)]
    pairs += [("accent-ink", "accent", 4.5), ("field", "sheet", 3), ("field", "ground", 3)]
    for theme in themes:
        assert len(theme) >= 12
        for text, ground, least in pairs:
            low, high = sorted((luminance(theme[text]), luminance(theme[ground])))
            assert (high + 0.05) / (low + 0.05) >= least, (text, ground)


def test_no_markup_is_made_from_strings() -> None:
    """Answers, passages and names stay text: the script never parses markup, the templates never trust."""
    script = (FOLDER / "static" / "page.js").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|DOMParser", script)
    for template in (FOLDER / "templates").glob("*.html"):
        source = template.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe|autoescape|style=|\son\w+=", source), template.name
        assert not re.search(r"<script(?![^>]*(\ssrc=|application/json))", source), template.name
