"""What opens doors: private keys, tokens, API keys, passwords. Pure."""

from __future__ import annotations

import re

from shared.masking.places import Place, places

_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
# A start inside a run of its own characters would read the run again and again.
_JWT = re.compile(r"(?<![\w-])eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*")
_KEY = re.compile(
    r"\b(?:sk|pk|rk)-[\w-]{12,}"  # OpenAI, Anthropic, LiteLLM, Langfuse
    r"|\b(?:sk|pk|rk)_(?:live|test)_\w{10,}"  # Stripe
    r"|\bA(?:KI|SI)A[0-9A-Z]{16}\b"  # AWS
    r"|\bAIza[\w-]{30,}|\bya29\.[\w-]{10,}|\bGOCSPX-[\w-]{10,}"  # Google
    r"|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{15,}"  # GitHub, GitLab
    r"|\bxox[a-z]-[\w-]{10,}"  # Slack
    r"|\bhf_[A-Za-z0-9]{20,}|\bnpm_[A-Za-z0-9]{30,}|\bpypi-[\w-]{20,}|\bSG\.[\w-]{16,}\.[\w-]{16,}"
)
_PREFIXES = (
    "sk-",
    "pk-",
    "rk-",
    "sk_",
    "pk_",
    "rk_",
    "AKIA",
    "ASIA",
    "AIza",
    "ya29",
    "GOCSPX",
    "gh",
    "glpat",
    "xox",
    "hf_",
    "npm_",
    "pypi-",
    "SG.",
)
_NAMES = ("passw", "kennwort", "secret", "token", "api", "signature", "authorization")
_BEARER = re.compile(r"\b(Bearer|Basic)\s+([\w.~+/-]{8,}=*)", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"://[^\s/:@]{0,200}:([^\s/@]{1,500})@")
_NAMED = re.compile(
    r"(?:password|passwd|passwort|kennwort|secret|token|api[_-]?key|signature|authorization)"
    r"[\"']?\s{0,3}[=:]\s{0,3}[\"']?(?!\[|(?:bearer|basic)\s)([^\s\"',;&]{4,})",
    re.IGNORECASE,
)


def private_keys(text: str) -> list[Place]:
    """PEM blocks, also those whose end is cut off."""
    return places(_PRIVATE_KEY, text) if "-----BEGIN" in text else []


def tokens(text: str) -> list[Place]:
    """JSON web tokens (RFC 7519: a header that begins with `{"` in base64)."""
    return places(_JWT, text) if "eyJ" in text else []


def url_passwords(text: str) -> list[Place]:
    """The password in `scheme://user:password@host`."""
    return places(_URL_PASSWORD, text, 1) if "://" in text and "@" in text else []


def bearers(text: str) -> list[Place]:
    """What follows `Bearer` or `Basic` in a header; a plain word after "basic" or "bearer" is none."""
    if not _has(text.lower(), ("bearer", "basic")):
        return []
    return [match.span(2) for match in _BEARER.finditer(text) if match[1] == "Bearer" or _is_random(match[2])]


def keys(text: str) -> list[Place]:
    """API keys by the prefixes of those who issue them."""
    return places(_KEY, text) if _has(text, _PREFIXES) else []


def named_secrets(text: str) -> list[Place]:
    """The value after `password=`, `token:`, `"api_key": "…"` and the like."""
    if ("=" not in text and ":" not in text) or not _has(text.lower(), _NAMES):
        return []
    return places(_NAMED, text, 1)


def _has(text: str, words: tuple[str, ...]) -> bool:
    """Whether a pattern can match at all: looking for words is many times faster than trying it everywhere."""
    return any(word in text for word in words)


def _is_random(value: str) -> bool:
    """Words, also with hyphens and a full stop, are not; base64 has digits or capital letters inside."""
    return any(c.isdigit() for c in value) or any(part != part.lower() and not part.istitle() for part in _parts(value))


def _parts(value: str) -> list[str]:
    return [part for part in re.split(r"[^A-Za-z]+", value) if part and not part.isupper()]
