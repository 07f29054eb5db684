"""Logs and traces: lines and spans of one W3C trace, masked where they leave (`shared.masking`), sampled as a whole."""

from shared.tracing.context import STRICT, Policy, bound, current, policy, under
from shared.tracing.logs import JsonLines, Lines, configure_logging
from shared.tracing.spans import (
    Span,
    annotate,
    continued_by,
    current_traceparent,
    fail_operation,
    operation,
    span,
    use_sink,
)

__all__ = [
    "STRICT",
    "JsonLines",
    "Lines",
    "Policy",
    "Span",
    "annotate",
    "bound",
    "configure_logging",
    "continued_by",
    "current",
    "current_traceparent",
    "fail_operation",
    "operation",
    "policy",
    "span",
    "under",
    "use_sink",
]
