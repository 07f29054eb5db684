"""The nodes of the graph: each does one thing with the state and returns what it adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from functions.agent.citations import verify
from functions.agent.journal import Journal
from functions.agent.prompts import NO_EVIDENCE, answer_messages
from functions.agent.state import PassageState, RunState
from functions.agent.wording import language_of, no_evidence_text, unproven_label
from shared.conversations.runs import Lease
from shared.database import tenant_session
from shared.llm import ChatReply
from shared.retrieval.search import Passage, search
from shared.retrieval.spaces import active_space
from shared.services import Services

TOP_K = 5


@dataclass(frozen=True)
class Nodes:
    """The steps of one run, with what they need."""

    lease: Lease
    services: Services
    journal: Journal

    def retrieve(self, state: RunState) -> dict[str, Any]:
        """Find the passages this member may see that fit the question best."""
        self.journal.step("retrieve")
        tenant_id = self.lease.tenant_id
        with tenant_session(tenant_id) as session:
            space = active_space(session, tenant_id)
        vector = self.services.models.embed(
            [state["question"]], model=space.model, dimension=space.dimension, input_type="query"
        )[0]
        with tenant_session(tenant_id) as session:
            found = search(session, tenant_id, self.lease.member_id, space, state["question"], vector, top_k=TOP_K)
        return {"passages": [_passage_state(number, passage) for number, passage in enumerate(found, start=1)]}

    def generate(self, state: RunState) -> dict[str, Any]:
        """Have the model answer from the passages; its words go out as they come."""
        self.journal.step("generate")
        self.journal.restart_draft()
        for piece in self.services.models.chat(answer_messages(state["question"], state["passages"])):
            if isinstance(piece, ChatReply):
                self.journal.flush()
                usage = {"model": piece.model, "input": piece.input_tokens, "output": piece.output_tokens}
                return {"draft": piece.text, "usage": usage}
            self.journal.token(piece)
        raise AssertionError("a chat ends with its ChatReply")

    def verify(self, state: RunState) -> dict[str, Any]:
        """Check every quotation against its passage; what is not proven says so."""
        self.journal.step("verify")
        language = language_of(state["question"])
        draft = state["draft"].strip()
        if not draft or NO_EVIDENCE in draft:
            return {"answer": no_evidence_text(language), "no_evidence": True, "citations": []}
        verified = verify(draft, state["passages"], unproven_label(language))
        if not verified.citations:
            # Nothing of it is proven: an answer without proof is no answer.
            return {"answer": no_evidence_text(language), "no_evidence": True, "citations": []}
        return {"answer": verified.text, "no_evidence": False, "citations": list(verified.citations)}

    def give_up(self, state: RunState) -> dict[str, Any]:
        """Say plainly that nothing was found."""
        text = no_evidence_text(language_of(state["question"]))
        return {"answer": text, "no_evidence": True, "citations": [], "draft": "", "usage": {}}


def _passage_state(number: int, passage: Passage) -> PassageState:
    return {
        "number": number,
        "chunk_id": str(passage.chunk_id),
        "version_id": str(passage.version_id),
        "document_id": str(passage.document_id),
        "title": passage.title,
        "text": passage.text,
        "heading_path": list(passage.heading_path),
        "page_starts": passage.position.get("page_starts") or [],
        "similarity": round(passage.similarity, 4),
    }
