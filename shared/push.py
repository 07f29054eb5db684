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

    def __init__(
        self,
        url: str,
        fetch: Callable[[str], httpx.Response] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._clock = clock
        self._fetch = fetch or (lambda address: httpx.get(address, timeout=5))
        self._keys: dict[str, Any] = {}
        self._fresh_until = 0.0
        self._fetched_at = float("-inf")
        self._lock = threading.Lock()

    def key(self, key_id: str) -> Any:
        """The key with this id. Raises NotAuthenticated when the issuer has none, TransientError when unreachable."""
        with self._lock:
            now = self._clock()
            stale = now >= self._fresh_until
            if stale or (key_id not in self._keys and now - self._fetched_at >= REFETCH_SECONDS):
                self._refresh(now)
            try:
                return self._keys[key_id]
            except KeyError:
                raise NotAuthenticated("the token is signed with an unknown key") from None

    def _refresh(self, now: float) -> None:
        # Counted before the attempt: an issuer that is down must not be asked again for every forged key id.
        self._fetched_at = now
        try:
            response = self._fetch(self._url)
            response.raise_for_status()
            keys = _rsa_keys(response.json())
        except (httpx.HTTPError, ValueError, RecursionError) as error:
            if self._keys:
                # Old keys are better than refusing every message while the issuer has a bad minute.
                self._fresh_until = now + REFETCH_SECONDS
                return
            raise TransientError("the keys of the push issuer cannot be fetched") from error
        age = _MAX_AGE.search(response.headers.get("cache-control", ""))
        self._keys = keys
        self._fresh_until = now + (int(age.group(1)[:9]) if age else 300)


def _rsa_keys(document: Any) -> dict[str, Any]:
    """The RSA keys of a JWK set (RFC 7517) by id. Raises ValueError when there is none."""
    entries = document.get("keys") if isinstance(document, dict) else None
    keys = {}
    for entry in entries if isinstance(entries, list) else []:
        # Issuers may add kinds of keys at any time; only RSA verifies RS256, and nothing secret belongs here.
        if isinstance(entry, dict) and entry.get("kty") == "RSA" and isinstance(entry.get("kid"), str):
            try:
                keys[entry["kid"]] = jwt.PyJWK(entry, "RS256").key
            except jwt.PyJWTError:
                continue
    if not keys:
        raise ValueError("no RSA key in the JWK set")
    return keys


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
                options |= dict.fromkeys(("verify_exp", "verify_nbf", "verify_iat", "verify_aud", "verify_iss"), True)
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
        except (jwt.PyJWTError, ValueError, OverflowError, RecursionError, TypeError) as error:
            # Besides its own errors PyJWT lets through what odd numbers and nesting in a forged token provoke.
            raise NotAuthenticated(f"the token is not valid: {type(error).__name__}") from None
        return claims
