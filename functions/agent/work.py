"""What the nodes of a run work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from functions.agent.calling import Caller
from functions.agent.journal import Journal
from shared.conversations.runs import Lease
from shared.llm import Abilities
from shared.services import Services

if TYPE_CHECKING:
    from functions.agent.tools import Toolbox


@dataclass
class Work:
    """One run in this process."""

    lease: Lease
    services: Services
    journal: Journal
    caller: Caller
    _toolbox: Toolbox | None = None

    @property
    def able(self) -> Abilities:
        """What the chat model can do."""
        return self.services.models.abilities()

    @property
    def toolbox(self) -> Toolbox:
        """The tools of this member in this tenant, made at the first use."""
        if self._toolbox is None:
            from functions.agent.tools import Toolbox  # late: most questions need no tool

            self._toolbox = Toolbox(self.lease, self.services, self.caller.embed)
        return self._toolbox


def begin(lease: Lease, services: Services, journal: Journal) -> Work:
    """A run's work in this process."""
    return Work(lease, services, journal, Caller(lease, services, journal))
