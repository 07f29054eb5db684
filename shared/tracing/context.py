"""What is bound to the work at hand: fields of every log line, the trace to continue, the tenant's policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from shared.masking import Mask, mask


@dataclass(frozen=True, slots=True)
class Policy:
    """How what leaves in logs and traces is treated: masked, and which part of the traces is kept.

    `sample_rate` from 0 to 1 and `content` (whether spans carry texts) are the stage's when None.
    """

    mask: Mask = mask
    sample_rate: float | None = None
    content: bool | None = None


STRICT = Policy()
"""Where no tenant is known: everything that is recognised is masked."""

_fields: ContextVar[dict[str, str] | None] = ContextVar("fields", default=None)
_policy: ContextVar[Policy] = ContextVar("policy", default=STRICT)


@contextmanager
def bound(**fields: str) -> Iterator[None]:
    """Every log line inside carries these fields; `traceparent` becomes what an outgoing call should continue."""
    token = _fields.set({**(_fields.get() or {}), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


def current(field: str) -> str:
    """A bound field, or an empty string."""
    return (_fields.get() or {}).get(field, "")


def fields_bound() -> dict[str, str]:
    """A copy of all bound fields."""
    return dict(_fields.get() or {})


@contextmanager
def under(policy: Policy) -> Iterator[None]:
    """Logs and traces inside follow this policy."""
    token = _policy.set(policy)
    try:
        yield
    finally:
        _policy.reset(token)


def policy() -> Policy:
    """The policy of the work at hand."""
    return _policy.get()
