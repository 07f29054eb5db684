"""The key check of a proxy without a database: one key, compared in constant time, 401 for everything else.

With a database LiteLLM's own check (master key and virtual keys) takes its place.
"""

from __future__ import annotations

import hmac
import os

from litellm.proxy._types import LitellmUserRoles, ProxyErrorTypes, ProxyException, UserAPIKeyAuth
from starlette.requests import Request


async def require_key(request: Request, api_key: str) -> UserAPIKeyAuth:
    """Let the holder of LITELLM_MASTER_KEY in; ProxyException with 401 for a missing or wrong key."""
    expected = os.environ.get("LITELLM_MASTER_KEY", "")
    given = api_key or ""
    if not expected or not hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode()):
        raise ProxyException(
            message="Authentication failed: send the key of this proxy as 'Authorization: Bearer …'.",
            type=ProxyErrorTypes.auth_error,
            param="api_key",
            code=401,
        )
    # No api_key in what goes on: LiteLLM would log a hash of it, and nothing here counts by key.
    return UserAPIKeyAuth(user_id="master", user_role=LitellmUserRoles.PROXY_ADMIN)
