"""What LiteLLM counts about keys, users and teams; left out where there are none.

Without a database this proxy has one key and no limits, budgets or spend logs: whoever calls keeps its own books. What
LiteLLM does all the same for every request (hooks that count by key, and the log record of every answer, built anew
for each of its readers, of which there is none) was measured at a third of its CPU.
"""

from __future__ import annotations

from typing import Any


def leave_out() -> None:
    """Have no hooks of LiteLLM's own and no log records of answers that succeeded; call before the proxy starts."""
    from litellm.litellm_core_utils.litellm_logging import Logging
    from litellm.proxy.hooks import PROXY_HOOKS

    PROXY_HOOKS.clear()
    Logging.async_success_handler = _unlogged


async def _unlogged(logging: Any, *_: object, **__: object) -> None:
    # The rest of what the handler does in 1.106.2: trace ids that were bound for the request are unbound.
    logging._restore_correlation_context()
