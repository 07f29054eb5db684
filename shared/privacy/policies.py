"""How a tenant's rules apply to logs and traces: masked by pseudonyms, sampled, with or without texts."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from uuid import UUID

from shared.database import tenant_session
from shared.masking import label_of, mask
from shared.privacy.pseudonyms import tenant_key, traced_as
from shared.privacy.rules import Rules, rules_of
from shared.settings import get_settings
from shared.tracing import Policy

FRESH_SECONDS = 60.0
"""How long a process may mask logs and traces by rules that were changed meanwhile; for models they hold at once."""

TENANTS = 1_000
"""Tenants whose rules a process remembers."""


def policy_of(tenant_id: UUID) -> Policy:
    """How what this tenant causes is masked and sampled in logs and traces; at most FRESH_SECONDS old.

    Opens a session of its own when it must read: never call it inside one.
    """
    return _policies.get(tenant_id)


def policy_from(rules: Rules, key: bytes | None) -> Policy:
    """The policy that follows from rules; with the tenant's key the same value is the same pseudonym in every line."""
    return Policy(
        mask=partial(mask, kinds=rules.traces, words=rules.words, name=partial(traced_as, key) if key else label_of),
        sample_rate=rules.sample_rate,
        content=rules.content,
    )


class RecentPolicies:
    """The policies of the tenants that were busy last, read anew every FRESH_SECONDS."""

    def __init__(self, read: Callable[[UUID], Policy], clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._known: OrderedDict[UUID, tuple[float, Policy]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, tenant_id: UUID) -> Policy:
        """The policy of a tenant. Raises what reading raises."""
        with self._lock:
            known = self._known.get(tenant_id)
        if known is not None and self._clock() - known[0] < FRESH_SECONDS:
            return known[1]
        policy = self._read(tenant_id)
        with self._lock:
            self._known[tenant_id] = (self._clock(), policy)
            self._known.move_to_end(tenant_id)
            while len(self._known) > TENANTS:
                self._known.popitem(last=False)
        return policy

    def forget(self) -> None:
        """Read everything anew (tests)."""
        with self._lock:
            self._known.clear()


def _read(tenant_id: UUID) -> Policy:
    with tenant_session(tenant_id) as session:
        rules = rules_of(session, tenant_id)
    settings = get_settings()
    return policy_from(rules, tenant_key(settings, tenant_id) if settings.secret_key is not None else None)


_policies = RecentPolicies(_read)


def forget_policies() -> None:
    """Read the rules anew at the next message (tests; a process that changed them itself)."""
    _policies.forget()
