"""Contextualise: a question that leans on its conversation becomes one that stands by itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from functions.agent.prompts import contextualise_messages, prompt
from functions.agent.state import RunState
from functions.agent.work import Work
from shared.conversations.memory import Turn, begins_conversation, turns_before
from shared.conversations.runs import QUESTION_LIMIT
from shared.database import tenant_session

REWRITTEN_TOKENS = 200

_OPENS = re.compile(
    r"(?:und|oder|aber|also|wie ist es|wie sieht es|was ist mit|was gilt|gilt das|and|or|but|so|what about|how about"
    r"|does (?:it|that|this)|is (?:it|that|this))\b",
    re.IGNORECASE,
)
_REFERS = re.compile(
    r"\b(?:er|ihn|ihm|davon|dafür|damit|dazu|dabei|darin|darüber|dies(?:e[rsnm]?)?|jene[rsnm]?|dort|it|its|they|them"
    r"|their|these|those)\b",
    re.IGNORECASE,
)
_FILLS = re.compile(
    r"(?:(?:warum|wieso|weshalb|wann|wo|wer|wie|was|viele?|lange|oft|weit|hoch|teuer|genau|denn|noch|mehr|bitte|why|when"
    r"|where|who|how|what|many|much|long|often|far|high|exactly|more|please|else|then)\W*)*",
    re.IGNORECASE,
)
MOST_WORDS = 12
"""A longer question says for itself what it is about."""


def contextualise(work: Work, state: RunState) -> dict[str, Any]:
    """Read the conversation and make the question stand by itself, with the model if it writes, else by a rule."""
    work.journal.begin()
    question = state["question"]
    turns: list[Turn] = []
    if not begins_conversation(work.lease):
        with tenant_session(work.lease.tenant_id) as session:
            turns = turns_before(session, work.lease)
    if not turns:
        return {"standalone": question, "turns": 0}
    if not work.able.writes:
        return {"standalone": joined(question, turns), "turns": len(turns)}
    work.journal.step("contextualise")
    reply = work.caller.chat(
        "contextualise",
        prompt("contextualise").tag,
        contextualise_messages(question, [(turn.question, turn.answer) for turn in turns]),
        max_tokens=REWRITTEN_TOKENS,
    )
    return {"standalone": one_line(reply.text) or joined(question, turns), "turns": len(turns)}


def joined(question: str, turns: Sequence[Turn]) -> str:
    """The question behind the last one that stood by itself, if it leans on it; else as it is."""
    if not leans(question):
        return question
    whole = next((turn.question for turn in reversed(turns) if not leans(turn.question)), turns[-1].question)
    return f"{whole} {question}"[:QUESTION_LIMIT]


def leans(question: str) -> bool:
    """Whether a question needs what was said before: it begins with "und", says "er" or "it", or is only "Warum?"."""
    words = re.findall(r"\w+", question.lower())
    if len(words) > MOST_WORDS:
        return False
    return bool(_OPENS.match(question) or _REFERS.search(question)) or bool(_FILLS.fullmatch(question.strip()))


def one_line(text: str) -> str:
    """What a model wrote as a single question or query; nothing when it wrote something else (too long, no words)."""
    line = " ".join(text.split()).strip("\"'“”„« »")
    return line if len(line) <= QUESTION_LIMIT and any(c.isalnum() for c in line) else ""
