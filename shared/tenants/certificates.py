"""The certificate of an erasure: what was erased, when and for whom, signed so that nobody can change a word of it."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

from shared.errors import PermanentError

KIND, VERSION = "noesis2-erasure-certificate", 1

LABEL = b"noesis2 erasure certificate 1"
"""Separates this key from everything else that is derived from SECRET_KEY (RFC 5869 section 3.2 calls it `info`)."""

NOTES = [
    "Database backups and the log for point-in-time recovery still hold the rows until their retention ends.",
    "Space of deleted rows is overwritten by VACUUM; planner statistics are renewed by ANALYZE. Both run weekly.",
    "A bucket with a soft-delete policy keeps deleted objects until its retention ends.",
    "Logs and traces of the platform carry ids, not content, until their retention ends.",
]
"""What no statement of ours can reach; part of every certificate."""


def signed(body: dict[str, Any], secret: str) -> dict[str, Any]:
    """The certificate: the body, what it is, and an HMAC-SHA256 over both by a key derived from SECRET_KEY."""
    certificate = {"kind": KIND, "version": VERSION, **body, "notes": NOTES}
    key = _key(secret)
    value = hmac.new(key, _canonical(certificate), hashlib.sha256).hexdigest()
    return {**certificate, "signature": {"algorithm": "HMAC-SHA256", "key_id": _key_id(key), "value": value}}


def check_signature(certificate: dict[str, Any], secret: str) -> None:
    """Raise PermanentError `not-a-certificate`, `another-key` or `signature-wrong`."""
    signature = certificate.get("signature")
    if certificate.get("kind") != KIND or not isinstance(signature, dict):
        raise PermanentError("not-a-certificate", "This is no certificate of an erasure by noesis2.")
    if certificate.get("version") != VERSION:
        raise PermanentError("not-a-certificate", "This version of a certificate is not known here.")
    key = _key(secret)
    if signature.get("key_id") != _key_id(key):
        raise PermanentError(
            "another-key",
            "The certificate was signed with another SECRET_KEY.",
            "Verify it where it was made, or with the key of that time.",
        )
    body = {name: value for name, value in certificate.items() if name != "signature"}
    expected = hmac.new(key, _canonical(body), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected.encode(), str(signature.get("value")).encode("utf-8", "replace")):
        raise PermanentError("signature-wrong", "The certificate was changed after it was signed.")


def _key(secret: str) -> bytes:
    return hmac.new(secret.encode(), LABEL, hashlib.sha256).digest()


def _key_id(key: bytes) -> str:
    """Tells one key from another and nothing about it."""
    return hashlib.sha256(b"id:" + key).hexdigest()[:16]


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()
