"""The nodes that decide: is there evidence, what has to be looked up, may it be done, and doing it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from langgraph.types import interrupt

from functions.agent.calling import TokensSpent
from functions.agent.prompts import answer_messages, prompt, widen_messages
from functions.agent.remembering import REWRITTEN_TOKENS, one_line
from functions.agent.state import CallState, PassageState, RunState
from functions.agent.work import Work
from shared import tracing
from shared.llm import ChatReply, ToolCall

MOST_TRIES = 2
"""Searches for one question: the second in other words."""

LAST_STEPS = 4
"""generate, verify, answer, and one to spare: from here on the run answers from what there is."""

ROUND_STEPS = 2
"""A decision of the model and what it wants done."""

SHARE_FOR_TOOLS = 0.7
"""Of the tokens of a run; the rest is kept for the answer."""

MOST_CALLS = 8
"""Tool calls of one decision that are looked at; the others are refused."""


_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""OpenAI's form of a function's name."""


def reason(work: Work, state: RunState) -> dict[str, Any]:
    """Decide what comes next: search again, use tools, answer, or say that there is no evidence."""
    work.journal.begin()
    steps = state.get("steps", 0) + 1
    tools = work.toolbox.offered() if work.able.tools else []
    # A run of an earlier release has passages and no weight on them.
    enough = bool(state["passages"]) and state.get("enough", True)
    looked_up = bool(state.get("dialogue"))
    if not tools:
        if enough or looked_up:
            return {"decision": "generate", "steps": steps}
        again = _other_query(work, state)
        if again:
            return {"decision": "retrieve", "query": again, "steps": steps}
        return {"decision": "give_up", "steps": steps}
    # What the gate does not take for evidence is not shown; the model has a tool to search by itself.
    passages = state["passages"] if enough or looked_up else []
    used = 3 + ROUND_STEPS * state.get("rounds", 0)
    if used + LAST_STEPS > work.services.settings.run_steps:
        return {"decision": "generate", "partial": True, "passages": passages, "steps": steps}
    try:
        reply = _decide(work, state, passages, tools)
    except TokensSpent:
        if not passages and not looked_up:
            raise
        return {"decision": "generate", "partial": True, "passages": passages, "steps": steps}
    made = {"passages": passages, "steps": steps, "rounds": state.get("rounds", 0) + 1}
    if not reply.tool_calls:
        usage = {"model": reply.model, "input": reply.input_tokens, "output": reply.output_tokens}
        cut = reply.finish_reason == "length"
        return made | {"decision": "verify", "draft": reply.text, "drafts": 1, "usage": usage, "cut": cut}
    clean = not passages and not state.get("turns") and not looked_up
    wanted = _named(reply.tool_calls, state.get("rounds", 0))
    calls = [_examined(work, call, f"tool:{made['rounds']}:{n}", n, clean) for n, call in enumerate(wanted)]
    asks = any(call["verdict"] == "ask" for call in calls)
    said = [*(state.get("dialogue") or ()), _as_message(reply.text, wanted)]
    return made | {"decision": "approve" if asks else "act", "calls": calls, "dialogue": said}


def _decide(work: Work, state: RunState, passages: list[PassageState], tools: list[dict[str, Any]]) -> ChatReply:
    """Ask the model; what it says may already be the answer, so its words go out as they come."""
    work.journal.step("reason")
    work.journal.restart_draft()
    question = state.get("standalone") or state["question"]
    reply = work.caller.chat(
        f"reason:{state.get('rounds', 0)}",
        prompt("tools").tag,
        answer_messages(question, passages, system="tools", dialogue=state.get("dialogue") or ()),
        tools=tools,
        aloud=True,
        share=SHARE_FOR_TOOLS,
    )
    if not reply.tool_calls:
        work.journal.flush()
    return reply


def _other_query(work: Work, state: RunState) -> str:
    """Another query for what found too little; nothing when there is none worth paying for."""
    if state.get("tries", 1) >= MOST_TRIES:
        return ""
    question = state.get("standalone") or state["question"]
    if not work.able.writes:
        # The conversation may have led astray; without it there is nothing else to try.
        return state["question"] if state["question"] != question else ""
    reply = work.caller.chat(
        "widen", prompt("widen").tag, widen_messages(question), max_tokens=REWRITTEN_TOKENS, share=SHARE_FOR_TOOLS
    )
    other = one_line(reply.text)
    return "" if other.casefold() == str(state.get("query", "")).casefold() else other


def _examined(work: Work, call: ToolCall, key: str, number: int, clean: bool) -> CallState:
    verdict, text = "refuse", "Too many calls at once; make fewer."
    if number < MOST_CALLS:
        found = work.toolbox.examine(call, clean=clean)
        verdict, text = found.kind, found.text
    return {
        "key": key,
        "call_id": call.call_id,
        "name": call.name,
        "arguments": call.arguments,
        "malformed": call.malformed,
        "verdict": verdict,
        "text": text,
    }


def _named(calls: Sequence[ToolCall], rounds: int) -> list[ToolCall]:
    """The calls, each with an id of its own: by it a provider finds a call's result, and some models give none."""
    used: set[str] = set()
    named = []
    for number, call in enumerate(calls):
        own = call.call_id if call.call_id and call.call_id not in used else f"call-{rounds}-{number}"
        used.add(own)
        named.append(replace(call, call_id=own))
    return named


def _as_message(text: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    """The model's own turn, as it must be repeated to it; providers refuse names that no tool may have."""
    made = [
        {
            "id": call.call_id,
            "type": "function",
            "function": {
                "name": call.name if _TOOL_NAME.fullmatch(call.name) else "unknown",
                "arguments": json.dumps(call.arguments, ensure_ascii=False),
            },
        }
        for call in calls
    ]
    return {"role": "assistant", "content": text, "tool_calls": made}


def approve(work: Work, state: RunState) -> dict[str, Any]:
    """Wait for people. `interrupt` runs this node again from its top, so it has no other effects (FACTS)."""
    decided = interrupt({"keys": [call["key"] for call in state["calls"] if call["verdict"] == "ask"]})
    # Which way it went stands in the database; perform reads it there, with the arguments as they were edited.
    calls = [call | {"verdict": "run"} if call["verdict"] == "ask" and decided else call for call in state["calls"]]
    return {"calls": calls}


def act(work: Work, state: RunState) -> dict[str, Any]:
    """Do what the model wants and may; each call once, also after a crash, and what it found becomes citable."""
    work.journal.begin()
    work.journal.step("act")
    work.journal.flush()
    passages, dialogue = list(state["passages"]), list(state["dialogue"])
    clean = not passages and not state.get("turns") and len(dialogue) == 1
    for call in state["calls"]:
        text = call["text"]
        if call["verdict"] == "run":
            work.journal.begin()  # what was done before is stored under its key and is not done again
            wanted = ToolCall(call["call_id"], call["name"], call["arguments"], call["malformed"])
            with tracing.span("use tool", observation="tool", operation="execute_tool", tool=wanted.name) as span:
                outcome = work.toolbox.perform(wanted, call["key"], clean=clean)
                span.set(ok=outcome.ok)
            text = outcome.text
            if outcome.ok:
                text += _numbered(passages, call["name"], outcome.plain, outcome.passages)
        dialogue.append({"role": "tool", "tool_call_id": call["call_id"], "content": text})
    return {"passages": passages, "dialogue": dialogue, "calls": []}


def _numbered(passages: list[PassageState], tool: str, text: str, found: list[PassageState]) -> str:
    """Make what a tool found citable, and tell the model by which numbers."""
    first = len(passages) + 1
    if not found:
        passages.append(
            {
                "number": first,
                "chunk_id": "",
                "version_id": "",
                "document_id": "",
                "title": tool,
                "text": text,
                "heading_path": [],
                "page_starts": [],
                "similarity": 1.0,
                "tool": tool,
            }
        )
        return f"\n(Cite this result as [{first}].)"
    for offset, passage in enumerate(found):
        passages.append(passage | {"number": first + offset, "tool": tool})
    cited = ", ".join(f"{offset} as [{first + offset - 1}]" for offset in range(1, len(found) + 1))
    return f"\n(Cite the passages of this result: {cited}.)"
