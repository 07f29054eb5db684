"""Tools in the hands of the model: what is offered, what may run, what a person must agree to, and doing it once.

Why it is so: docs/decisions/0018-tools-and-approval.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from functions.agent.state import PassageState
from functions.agent.tooling import web
from functions.agent.tooling.effects import READERS, WRITERS, attempt, content, outcome_of
from functions.agent.tooling.rules import Rules, Verdict
from functions.agent.tooling.working import Deadline, Found, Work, bound
from shared.completions import ToolCall
from shared.conversations.runs import Lease
from shared.database import tenant_session
from shared.errors import Superseded
from shared.fetching.sending import OutcomeUnknown
from shared.retrieval.spaces import Space
from shared.services import Services
from shared.tenants.directory import Principal
from shared.tools.approvals import decision_of
from shared.tools.arguments import Arguments, HttpArguments
from shared.tools.calls import Outcome, finished_call, reserve, store, tools_used
from shared.tools.catalogue import TOOLS
from shared.tools.registry import Grant, grants

__all__ = ["ToolOutcome", "Toolbox", "Verdict"]


Embed = Callable[[str, str, Space, float], list[float]]
"""Call key, question, space and seconds to a vector, as `functions.agent.calling.Caller.embed`."""


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """What a call came to: the whole content of its `tool` message, and passages that may be cited (from 1).

    `plain` is what stands between the markers of `text`, not escaped.
    """

    text: str
    ok: bool
    passages: list[PassageState] = field(default_factory=list)
    plain: str = ""


class Toolbox:
    """The tools of one run, used in the rights of the member who asked. Rights are read anew for every call."""

    def __init__(self, lease: Lease, services: Services, embed: Embed) -> None:
        """`embed` books what a search costs on the run."""
        self._lease = lease
        self._services = services
        self._embed = embed

    def offered(self) -> list[dict[str, Any]]:
        """The tools this member may use, in the OpenAI format; none where the model cannot call them."""
        if not self._services.models.abilities().tools:
            return []
        with tenant_session(self._lease.tenant_id) as session:
            role = self._principal(session).role
            allowed = grants(session, self._lease.tenant_id)
        return [
            grant.tool.schema(_destinations(grant))
            for grant in allowed.values()
            if grant.permits(role) and (grant.tool.name != "http_request" or grant.settings.get("allow"))
        ]

    def examine(self, call: ToolCall, key: str = "", *, clean: bool = False) -> Verdict:
        """Whether the call runs, is asked about or refused; what was decided about `key` already counts.

        `clean`: the context holds nothing but the member's own question.
        """
        with tenant_session(self._lease.tenant_id) as session:
            decision = decision_of(session, self._lease.tenant_id, self._lease.run_id, key)
            return self._rules(session, self._principal(session), clean).decided(call, decision).verdict

    def perform(self, call: ToolCall, key: str, *, clean: bool = False) -> ToolOutcome:
        """Do what is allowed, at most once under this key, within 30 s; what is not is an outcome that says so.

        Everything is examined again. Where a person was asked, their word decides and their arguments are used.
        Raises Superseded when the run is lost, TransientError and Postponed when the work shall be tried again.
        """
        deadline = Deadline()
        with tenant_session(self._lease.tenant_id) as session:
            done = finished_call(session, self._lease.tenant_id, self._lease.run_id, key)
            if done is not None:
                return _told(call.name, done)
            principal = self._principal(session)
            decision = decision_of(session, self._lease.tenant_id, self._lease.run_id, key)
            judged = self._rules(session, principal, clean).decided(call, decision)
        verdict = judged.verdict
        if verdict.kind != "run" or judged.grant is None or judged.arguments is None:
            outcome = Outcome(False, verdict.text, verdict.reason)
            if verdict.kind == "refuse":  # who must be asked first may still be asked, and then it is this key
                self._store(key, call.name if call.name in TOOLS else "unknown", {}, outcome)
            return _told(call.name, outcome)
        work = Work(
            principal,
            self._services,
            deadline,
            lambda question, space: self._embed(f"{key}:embed", question, space, deadline.left()),
        )
        match judged.grant.tool.effect:
            case "none" | "read":
                outcome = self._read(key, judged.grant, judged.arguments, work)
            case "write":
                outcome = self._write(key, judged.grant, judged.arguments, work)
            case "external":
                outcome = self._send(key, judged.grant, cast("HttpArguments", judged.arguments), work)
        return _told(call.name, outcome)

    def _principal(self, session: Session) -> Principal:
        """Who asked, with the role of this moment. Raises Superseded when the member is gone."""
        row = session.execute(
            text(
                "select t.tenant_id, t.slug, t.name as tenant_name, m.member_id, m.email, m.name, m.role "
                "from core.members m join core.tenants t on t.tenant_id = m.tenant_id "
                "where m.tenant_id = :tenant and m.member_id = :member"
            ),
            {"tenant": self._lease.tenant_id, "member": self._lease.member_id},
        ).first()
        if row is None:
            raise Superseded("whoever asked is no longer a member")
        return Principal(*row)

    def _rules(self, session: Session, principal: Principal, clean: bool) -> Rules:
        allowed = grants(session, self._lease.tenant_id)
        # Whatever a tool has read in this run is in the context, whatever the caller believes.
        used = tools_used(session, self._lease.tenant_id, self._lease.run_id) if clean else set()
        untouched = all(name in TOOLS and TOOLS[name].effect == "none" for name in used)
        return Rules(allowed, principal.role, clean and untouched, self._services.settings)

    def _store(self, key: str, name: str, arguments: dict[str, Any], outcome: Outcome) -> None:
        with tenant_session(self._lease.tenant_id) as session:
            store(session, self._lease, key, name, arguments, outcome)

    def _read(self, key: str, grant: Grant, arguments: Arguments, work: Work) -> Outcome:
        """Compute or read: a crash before the outcome is stored costs nothing but the repetition."""
        outcome = attempt(lambda: READERS[grant.tool.name](arguments, work), work.deadline)
        self._store(key, grant.tool.name, arguments.model_dump(mode="json"), outcome)
        return outcome

    def _write(self, key: str, grant: Grant, arguments: Arguments, work: Work) -> Outcome:
        """Effect and outcome in one transaction: both are there or neither is."""
        kept = arguments.model_dump(mode="json")

        def change() -> Found:
            with tenant_session(self._lease.tenant_id) as session:
                bound(session, work.deadline)
                found = WRITERS[grant.tool.name](session, arguments, work)
                # Last, and it raises for who has lost the run: then nothing was changed either.
                store(session, self._lease, key, grant.tool.name, kept, outcome_of(found))
            return found

        outcome = attempt(change, work.deadline)
        if not outcome.ok:
            self._store(key, grant.tool.name, kept, outcome)
        return outcome

    def _send(self, key: str, grant: Grant, arguments: HttpArguments, work: Work) -> Outcome:
        """Reserve, send, store. Who finds a reservation does not know what became of it, and says so."""
        kept = arguments.model_dump(mode="json")
        endpoint, _ = web.destination(arguments, grant.settings, self._services.settings)
        with tenant_session(self._lease.tenant_id) as session:
            first = reserve(session, self._lease, key, grant.tool.name, kept)
        once = str(uuid5(self._lease.run_id, f"tool:{key}"))
        try:
            if not first and not web.repeatable(arguments, endpoint):
                raise OutcomeUnknown("outcome-unknown", "An earlier attempt ended without a word.", "")
            outcome = attempt(lambda: web.request(arguments, grant.settings, work, once), work.deadline)
        except OutcomeUnknown:
            said = (
                "The request may have been sent, but nobody knows whether it took effect. It is not repeated: say so."
            )
            outcome = Outcome(False, said, "outcome-unknown")
        self._store(key, grant.tool.name, kept, outcome)
        return outcome


def _told(name: str, outcome: Outcome) -> ToolOutcome:
    passages = [cast("PassageState", dict(passage)) for passage in outcome.passages]
    return ToolOutcome(content(name, outcome), outcome.ok, passages, outcome.text)


def _destinations(grant: Grant) -> str:
    """Where the HTTP tool may go, for the model to read; the names of headers and secrets are not among it."""
    entries = grant.settings.get("allow", ())
    listed = "; ".join(f"{', '.join(entry['methods'])} {entry['url']}" for entry in entries)
    return f"Allowed: {listed}." if listed else ""
