"""The nodes that find, write and check: each does one thing with the state and returns what it adds."""

from __future__ import annotations

from functools import partial
from typing import Any

from functions.agent.citations import foreign_language, verify
from functions.agent.output_checks import REMOVED, addresses, clean, plain, withhold
from functions.agent.prompts import NAMES, NO_EVIDENCE, again_in, answer_messages, prompt
from functions.agent.state import RunState, passage_state
from functions.agent.wording import (
    cut_note,
    framed,
    language_of,
    no_evidence_text,
    partial_note,
    unproven_label,
)
from functions.agent.work import Work
from shared.database import tenant_session
from shared.retrieval.context import with_context
from shared.retrieval.evidence import weigh
from shared.retrieval.reranking import BUNDLED, candidates_wanted, improved
from shared.retrieval.search import search
from shared.retrieval.spaces import active_space

TOP_K = 5
CONTEXT_TOKENS = 6_000
"""What a model that writes gets to read: the hits and what stands around them."""

MOST_DRAFTS = 2
"""An answer in the wrong language is written once more."""


def retrieve(work: Work, state: RunState) -> dict[str, Any]:
    """Find the passages this member may see that fit the question best, and weigh them as evidence."""
    work.journal.begin()
    work.journal.step("retrieve")
    lease, tries = work.lease, state.get("tries", 0)
    query = state.get("query") or state.get("standalone") or state["question"]
    with tenant_session(lease.tenant_id) as session:
        space = active_space(session, lease.tenant_id)
        work.caller.prepare(session)
    vector = work.caller.embed(f"embed:{tries}", query, space)
    settings = work.services.settings
    most = candidates_wanted(settings, TOP_K)
    with tenant_session(lease.tenant_id) as session:
        found = search(session, lease.tenant_id, lease.member_id, space, query, vector, top_k=most)
    evidence = weigh(found, space)
    if settings.rerank_model:
        judge = partial(work.caller.rerank, f"rerank:{tries}")
        found, by = improved(work.services.models, settings, space, query, found, judge)
        evidence = weigh(found, space) if by == BUNDLED else evidence
    found = found[:TOP_K]
    if work.able.writes:
        # The bundled answerer picks single sentences: it is measured on the chunks as they are.
        with tenant_session(lease.tenant_id) as session:
            found = with_context(session, lease.tenant_id, found, CONTEXT_TOKENS)
    return {
        "passages": [passage_state(number, passage) for number, passage in enumerate(found, start=1)],
        "query": query,
        "tries": tries + 1,
        "enough": evidence.enough,
        "strength": evidence.strength,
        "space_id": str(space.space_id),
    }


def generate(work: Work, state: RunState) -> dict[str, Any]:
    """Have the model answer from what there is; its words go out as they come."""
    work.journal.begin()
    work.journal.step("generate")
    work.journal.restart_draft()
    drafts = state.get("drafts", 0)
    name, dialogue = "answer", _results(state)
    if drafts:
        name, dialogue = "language", [*dialogue, *again_in(state["draft"], language_of(state["question"]))]
    question = state.get("standalone") or state["question"]
    reply = work.caller.chat(
        f"generate:{drafts}",
        prompt(name).tag,
        answer_messages(question, state["passages"], dialogue=dialogue),
        aloud=True,
    )
    work.journal.flush()
    return {
        "draft": reply.text,
        "drafts": drafts + 1,
        "cut": reply.finish_reason == "length",
        "usage": {"model": reply.model, "input": reply.input_tokens, "output": reply.output_tokens},
    }


def _results(state: RunState) -> list[dict[str, Any]]:
    """What tools have told, as one message: a model without tools must not be shown calls it cannot make."""
    told = [str(message["content"]) for message in state.get("dialogue") or () if message["role"] == "tool"]
    return [{"role": "user", "content": "\n".join([*told, prompt("last").text])}] if told else []


def check(work: Work, state: RunState) -> dict[str, Any]:
    """Check every quotation against its passage; what is not proven says so. A wrong language is written again."""
    work.journal.begin()
    work.journal.step("verify")
    language = language_of(state["question"])
    # What is not seen must not be what is checked: "9<zero width>00" reads 900.
    draft = plain(state["draft"]).strip()
    nothing = {"answer": no_evidence_text(language), "no_evidence": True, "fallback": True, "citations": []}
    if not draft or NO_EVIDENCE in draft:
        return nothing | {"decision": "answer", "findings": []}
    verified = verify(draft, state["passages"], unproven_label(language))
    if not verified.citations and not verified.results:
        # Nothing of it is proven: an answer without proof is no answer.
        return nothing | {"decision": "answer", "findings": list(verified.findings)}
    again = foreign_language(draft, language) and work.able.writes and state.get("drafts", 0) < MOST_DRAFTS
    return {
        "answer": verified.text,
        "no_evidence": False,
        "fallback": False,
        "citations": list(verified.citations),
        "findings": list(verified.findings),
        "decision": "generate" if again else "answer",
    }


def finish(work: Work, state: RunState) -> dict[str, Any]:
    """The answer as people get it: nothing in it that leaks, and said what is missing."""
    work.journal.begin()
    language = language_of(state["question"])
    if state.get("no_evidence"):
        return {"answer": state["answer"]}
    # An address may stay when the answer quotes it, word for word, from what it cites; a model cannot add to it.
    quoted = [address for citation in state["citations"] for address in addresses(citation["quote"])]
    told = withhold(state["answer"], [prompt(name).text for name in NAMES])
    text = clean(told, quoted)
    gone = addresses(told) - addresses(text) or REMOVED in text
    found = ["prompt-withheld"] * (told != state["answer"]) + ["address-removed"] * bool(gone)
    if foreign_language(state["draft"], language):
        text = framed(text, language)
    notes = [cut_note(language)] * bool(state.get("cut")) + [partial_note(language)] * bool(state.get("partial"))
    return {"answer": "\n\n".join([text, *notes]), "findings": [*(state.get("findings") or ()), *found]}


def give_up(work: Work, state: RunState) -> dict[str, Any]:
    """Say plainly that nothing was found; no model is asked."""
    work.journal.begin()
    text = no_evidence_text(language_of(state["question"]))
    return {"answer": text, "no_evidence": True, "fallback": True, "citations": [], "draft": "", "usage": {}}
