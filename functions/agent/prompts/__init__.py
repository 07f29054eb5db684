"""What the model is told. Pure: state in, messages out; the texts are the Markdown files beside this one.

Each file begins with its version; a changed text needs a new number (a test holds both together), and a run stores
which ones it used. Passages are data, never instructions: they stand escaped between markers, and the model is told
so. The form of the last message of `answer_messages` is a contract with the embedded extractive answerer
(litellm_service).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any
from xml.sax.saxutils import escape

from functions.agent.state import PassageState

NO_EVIDENCE = "NO_EVIDENCE"
NAMES = ("answer", "contextualise", "language", "last", "tools", "widen")
LANGUAGES = {"de": "German", "en": "English"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text for the model; `tag` names it with its version and the beginning of its SHA-256: `answer-1:5f3a09c2`."""

    name: str
    version: int
    text: str

    @property
    def tag(self) -> str:
        """What runs and traces carry."""
        return f"{self.name}-{self.version}:{hashlib.sha256(self.text.encode()).hexdigest()[:8]}"


@lru_cache
def prompt(name: str) -> Prompt:
    """The prompt of this release under a name of NAMES."""
    written = (files(__package__) / f"{name}.md").read_text(encoding="utf-8")
    head, _, text = written.partition("\n\n")
    return Prompt(name, int(head.removeprefix("version: ")), text.strip())


SYSTEM = prompt("answer").text
VERSION = f"answer-{prompt('answer').version}"


def answer_messages(
    question: str, passages: Sequence[PassageState], *, system: str = "answer", dialogue: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """The chat messages for a question with its passages; `dialogue` is what came after: tool calls, results, notes."""
    # What a tool found stands in its result; shown here it would seem to have been there before the call.
    shown = [passage for passage in passages if not passage.get("tool")]
    content = "\n".join(
        ["<passages>", *map(passage_text, shown), "</passages>", f"<question>{escape(question)}</question>"]
    )
    return [{"role": "system", "content": prompt(system).text}, {"role": "user", "content": content}, *dialogue]


def passage_text(passage: PassageState) -> str:
    """A passage between its markers, escaped."""
    # Always in double quotation marks: the answerer reads no others (quoteattr would choose).
    title = escape(" › ".join([passage["title"], *passage["heading_path"]]), {'"': "&quot;"})
    return f'<passage n="{passage["number"]}" title="{title}">\n{escape(passage["text"])}\n</passage>'


def contextualise_messages(question: str, turns: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """The chat messages that make a question understandable by itself; `turns` are questions and answers, in order."""
    said = [f"<turn>\n<asked>{escape(q)}</asked>\n<answered>{escape(a)}</answered>\n</turn>" for q, a in turns]
    content = "\n".join(["<conversation>", *said, "</conversation>", f"<question>{escape(question)}</question>"])
    return [{"role": "system", "content": prompt("contextualise").text}, {"role": "user", "content": content}]


def widen_messages(question: str) -> list[dict[str, Any]]:
    """The chat messages that ask for another search query."""
    content = f"<question>{escape(question)}</question>"
    return [{"role": "system", "content": prompt("widen").text}, {"role": "user", "content": content}]


def again_in(draft: str, language: str) -> list[dict[str, Any]]:
    """The dialogue that asks for the same answer in another language (`de`, `en`)."""
    wanted = prompt("language").text.replace("{language}", LANGUAGES[language])
    return [{"role": "assistant", "content": draft}, {"role": "user", "content": wanted}]
