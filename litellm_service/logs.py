"""What LiteLLM may log: where something failed, with which kind of error and status. Never a message.

Its own messages and stack traces quote provider errors, which may quote prompts, and the caller gets both anyway.
"""

from __future__ import annotations

import logging

_LOGGERS = ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router", "asyncio")
_STANDARD = frozenset(vars(logging.makeLogRecord({})))
# Identifiers made by LiteLLM, to find the call in our own traces.
_KEPT = frozenset({"litellm_call_id", "component"})


class WithoutContent(logging.Filter):
    """Rewrites a record to the kind of error and its status; drops stack trace and everything else it carries."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep every record, without its content."""
        error = record.exc_info[1] if record.exc_info else None
        # The proxy's own errors keep the status in `code`, as a string.
        status = getattr(error, "status_code", None) or getattr(error, "code", None)
        kind = type(error).__name__ if error is not None else record.levelname.lower()
        record.msg = f"{kind} {status}" if str(status).isdigit() else kind
        record.args = None
        record.exc_info = record.exc_text = record.stack_info = None
        for name in set(vars(record)) - _STANDARD - _KEPT:
            delattr(record, name)
        return True


def install() -> None:
    """Put the filter on LiteLLM's loggers (they are made when litellm is imported; handlers may come later)."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(WithoutContent())
