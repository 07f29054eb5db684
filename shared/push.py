"""Who calls our functions: the OIDC token of a Pub/Sub push, verified by the same code on a laptop and in the cloud.

Two shapes (setting PUSH_TOKEN_SIGNATURE): `verified`, the app checks signature, issuer, audience and account; or
`removed`, Cloud Run's IAM has checked the token before us and took the signature away, then the app checks the claims.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import jwt

from shared.errors import NoesisError, SettingsError, TransientError
from shared.settings import Settings

LEEWAY = 30
"""Seconds of clock difference we forgive."""

REFETCH_SECONDS = 60
"""At most one fetch a minute for a key id that we do not know: a forger must not make us fetch."""

_MAX_AGE = re.compile(r"max-age=(\d+)")


class NotAuthenticated(NoesisError):
    """No token, or one that does not prove anything: 401."""


class NotAuthorised(NoesisError):
    """A true token of somebody who may not push here: 403."""


class KeySet:
    """The issuer's public keys, kept as long as its Cache-Control says."""

    def __init__(self, url: str, fetch: Callable[[str], httpx.Response] | None = None) -> None:
        self._url = url
        self._fetch = fetch or (lambda address: httpx.get(address, timeout=5))
        self._keys: dict[str, Any] = {}
        self._fresh_until = 0.0
        self._fetched_at = -REFETCH_SECONDS * 2.0
        self._lock = threading.Lock()

    def key(self, key_id: str) -> Any:
        """The key with this id. Raises NotAuthenticated when the issuer has none, TransientError when unreachable."""
        with self._lock:
            now = time.monotonic()
            stale = now >= self._fresh_until
            if stale or (key_id not in self._keys and now - self._fetched_at >= REFETCH_SECONDS):
                self._refresh(now)
            try:
                return self._keys[key_id]
            except KeyError:
                raise NotAuthenticated("the token is signed with an unknown key") from None

    def _refresh(self, now: float) -> None:
        try:
            response = self._fetch(self._url)
            response.raise_for_status()
            found = jwt.PyJWKSet.from_dict(response.json())
        except (httpx.HTTPError, ValueError, jwt.PyJWTError) as error:
            if self._keys:
                # Old keys are better than refusing every message while the issuer has a bad minute.
                self._fresh_until = now + REFETCH_SECONDS
                return
            raise TransientError("the keys of the push issuer cannot be fetched") from error
        age = _MAX_AGE.search(response.headers.get("cache-control", ""))
        self._keys = {key.key_id: key.key for key in found.keys if key.key_id}
        self._fresh_until = now + (int(age.group(1)) if age else 300)
        self._fetched_at = now


class PushVerifier:
    """Checks the Authorization header of a push against the settings of this service."""

    def __init__(self, settings: Settings, keys: KeySet | None = None) -> None:
        if not settings.push_audience or not settings.push_service_account:
            raise SettingsError(
                "PUSH_AUDIENCE and PUSH_SERVICE_ACCOUNT are not set: say whose pushes this service takes."
            )
        self._settings = settings
        self._keys = keys or KeySet(settings.push_jwks_url)

    def verify(self, authorization: str, path: str) -> None:
        """Raises NotAuthenticated (401) or NotAuthorised (403) unless the push was meant for this path.

        The audience of a subscription's token is its endpoint, so the path, and with it the source of a document,
        is part of what the signature proves.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise NotAuthenticated("the push carries no bearer token")
        claims = self._claims(token.strip(), self._settings.push_audience.rstrip("/") + path)
        if claims.get("email") != self._settings.push_service_account or claims.get("email_verified") is not True:
            raise NotAuthorised("the token's account may not push to this service")

    def _claims(self, token: str, audience: str) -> dict[str, Any]:
        options: Any = {"require": ["exp", "iat", "aud", "iss"]}
        try:
            if self._settings.push_token_signature == "removed":  # noqa: S105 # a mode, not a password
                options["verify_signature"] = False
                # PyJWT checks nothing without a signature unless told to.
                options |= {"verify_exp": True, "verify_aud": True, "verify_iss": True, "verify_iat": True}
                key: Any = ""
            else:
                header = jwt.get_unverified_header(token)
                key = self._keys.key(str(header.get("kid", "")))
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=["RS256"],
                audience=[audience, audience.rstrip("/")],
                issuer=[self._settings.push_issuer, self._settings.push_issuer.removeprefix("https://")],
                leeway=LEEWAY,
                options=options,
            )
        except jwt.PyJWTError as error:
            raise NotAuthenticated(f"the token is not valid: {type(error).__name__}") from None
        return claims
