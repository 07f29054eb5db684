"""The first span of a trace: a request that asks or uploads. What it publishes continues it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from shared import tracing
from shared.privacy.policies import policy_of
from web.context import principal

P = ParamSpec("P")
R = TypeVar("R")


def traced(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Record a view of a signed-in member under this name, as the beginning of a trace.

    A `traceparent` that the request brings is not continued: from a browser anyone could join anybody's trace.
    """

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        @wraps(view)
        def recorded(*args: P.args, **kwargs: P.kwargs) -> R:
            who = principal()
            tenant_id, member_id = str(who.tenant_id), str(who.member_id)
            with (
                tracing.under(policy_of(who.tenant_id)),
                tracing.bound(tenant_id=tenant_id),
                tracing.operation(name, tenant_id=tenant_id, member_id=member_id, trace_name=name),
            ):
                return view(*args, **kwargs)

        return recorded

    return decorate
