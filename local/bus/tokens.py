"""The identity of the bus: signed tokens for what it sends, and the keys that verify them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

# Google's tokens live for an hour; a cached one is replaced while every receiver still takes it.
_LIFETIME = 3600
_RENEW = 600
# Audiences are few (one per endpoint); whoever makes thousands of them gets no cache.
_CACHE = 1000


class Tokens:
    """RS256 tokens with the claims of Google's OIDC tokens. Real time, never the test clock: receivers verify them."""

    def __init__(self, home: Path, issuer: str, service_account: str) -> None:
        """Read the key from `home`, or make one (readable by its owner only)."""
        self.issuer = issuer
        self._service_account = service_account
        self._key = _private_key(home / "signing-key.pem")
        public = json.loads(RSAAlgorithm.to_jwk(self._key.public_key()))
        # RFC 7638: the thumbprint of the key names it.
        thumb = json.dumps({name: public[name] for name in ("e", "kty", "n")}, separators=(",", ":"))
        self._kid = base64.urlsafe_b64encode(hashlib.sha256(thumb.encode()).digest()).rstrip(b"=").decode()
        self._public = {"kty": public["kty"], "n": public["n"], "e": public["e"], "kid": self._kid}
        self._signed: dict[tuple[str, str], tuple[float, str]] = {}
        self._lock = threading.Lock()

    def jwks(self) -> dict[str, Any]:
        """The JSON Web Key Set that verifies the tokens (RFC 7517)."""
        return {"keys": [{**self._public, "alg": "RS256", "use": "sig"}]}

    def bearer(self, audience: str, service_account: str = "") -> str:
        """The value of an Authorization header for `audience`, as `service_account` or the bus's own."""
        email = service_account or self._service_account
        now = time.time()
        with self._lock:
            renew, header = self._signed.get((audience, email), (0.0, ""))
            if now < renew:
                return header
            header = "Bearer " + self._sign(audience, email, int(now))
            if len(self._signed) >= _CACHE:
                self._signed.clear()
            self._signed[audience, email] = (now + _LIFETIME - _RENEW, header)
            return header

    def _sign(self, audience: str, email: str, now: int) -> str:
        claims = {
            "iss": self.issuer,
            "aud": audience,
            "azp": email,
            "email": email,
            "email_verified": True,
            # Google's subject is the account's number: stable, and not its address.
            "sub": str(int.from_bytes(hashlib.sha256(email.encode()).digest()[:8], "big")),
            "iat": now,
            "exp": now + _LIFETIME,
        }
        return jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": self._kid})


def _private_key(path: Path) -> rsa.RSAPrivateKey:
    if path.exists():
        loaded = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(loaded, rsa.RSAPrivateKey):
            raise ValueError(f"{path} does not hold an RSA key: move it away and start again")
        return loaded
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    # Written aside and renamed: a kill in between must not leave half a key.
    aside = path.with_suffix(".new")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(pem)
    aside.rename(path)
    return key
