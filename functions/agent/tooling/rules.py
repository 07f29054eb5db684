"""Whether a call may run: by the tenant's registry, the member's rights, the tool's effect and what the model has read.

Never by what a text says. A classifier of texts would be asked by the attacker's text, too (docs/decisions/0018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from functions.agent.output_checks import plain
from functions.agent.tooling import web
from shared.completions import ToolCall
from shared.errors import PermanentError
from shared.settings import Settings
from shared.tools.approvals import Decision
from shared.tools.arguments import Arguments, HttpArguments, read_arguments
from shared.tools.registry import Grant


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a call runs, a person is asked, or it is refused; `text` tells the model why, `reason` is a code."""

    kind: Literal["run", "ask", "refuse"]
    text: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict with the grant and the typed arguments it is about; both are there unless it is a refusal."""

    verdict: Verdict
    grant: Grant | None = None
    arguments: Arguments | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds at this moment: the tenant's grants, the asker's role, and whether the context is only theirs."""

    grants: Mapping[str, Grant]
    role: str
    clean: bool
    settings: Settings

    def judge(self, call: ToolCall) -> Judged:
        """The rule in its order: known, enabled, permitted, well-formed, allowed to go there, agreed to."""
        grant = self.grants.get(call.name)
        if grant is None or not grant.permits(self.role):
            return self._not_usable(grant)
        if call.malformed:
            return refused("bad-arguments", f"The arguments are no JSON object: {plain(call.malformed)[:200]}")
        fixed = True
        try:
            arguments = read_arguments(grant.tool.arguments, call.arguments)
            if isinstance(arguments, HttpArguments):
                endpoint, _ = web.destination(arguments, grant.settings, self.settings)
                fixed = endpoint.fixed(arguments.body)
        except PermanentError as error:
            return refused(error.reason, f"{error.message} {error.next_action}".strip())
        # What the model has read may speak through it. Then only what the tenant trusts to run alone does, and never
        # a request in which the model chose what leaves the house.
        unclean = not self.clean and (grant.asking == "untrusted" or not fixed)
        if grant.asking == "always" or unclean:
            return Judged(
                Verdict("ask", "A person must agree to this call first.", "approval-missing"), grant, arguments
            )
        return Judged(Verdict("run"), grant, arguments)

    def decided(self, call: ToolCall, decision: Decision | None) -> Judged:
        """What may be performed: a person's word stands before the asking, never before the rest of the rule."""
        if decision is None:
            return self.judge(call)
        note = f" Their note: {plain(decision.note)}" if decision.note else ""
        if decision.kind == "expired":
            return refused(
                "approval-expired", "Nobody agreed to this call in time; it was not made. Answer without it."
            )
        if decision.arguments is None:
            return refused("approval-refused", f"A person refused this call; it was not made.{note}")
        if decision.tool != call.name:
            return refused("other-call", "A person agreed to another call; this one was not made.")
        judged = self.judge(ToolCall(call.call_id, decision.tool, decision.arguments))
        if judged.verdict.kind == "refuse":
            return judged
        return Judged(Verdict("run"), judged.grant, judged.arguments)

    def _not_usable(self, grant: Grant | None) -> Judged:
        usable = ", ".join(name for name, one in self.grants.items() if one.permits(self.role)) or "none"
        if grant is None:
            return refused("unknown-tool", f"There is no such tool. Tools you may use: {usable}.")
        if not grant.enabled:
            return refused("tool-disabled", f"This tool is switched off. Tools you may use: {usable}.")
        return refused("tool-not-permitted", f"The member who asks may not use it. Tools you may use: {usable}.")


def refused(reason: str, text: str) -> Judged:
    """A refusal that the model reads."""
    return Judged(Verdict("refuse", text, reason))
