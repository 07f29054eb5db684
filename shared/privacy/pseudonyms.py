"""Pseudonyms: what identifies people is replaced before a text goes to a model, and put back in its answer.

A placeholder looks like ⟦EMAIL-7f3a91c2⟧: the kind, so that a model can reason about it, and eight digits of an HMAC
over the value with a key of the tenant, so that the same value is the same placeholder in every text, run and
process, and nobody without the key can tell or guess the value. Different spellings of one value share the digits and
differ in a suffix (⟦IBAN-7f3a91c2-d4⟧), because the spelling must come back exactly.

Only what this object has masked comes back. Text that looks like a placeholder before masking is masked itself
(⟦TEXT-…⟧), so that a document cannot make an answer say what stands in another one. Therefore mask a text once.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from shared.errors import SettingsError
from shared.masking import KINDS, SECRETS, Found, find, lower, replace
from shared.masking.places import places, without
from shared.privacy.rules import DEFAULT, Rules, rules_of
from shared.settings import Settings, get_settings

DIGITS = 8
"""Hexadecimal digits of a placeholder: 1,000 values of one kind collide in one of 10,000 runs, and then get more."""

# Models drop or change the brackets now and then; the core alone is enough to know it again.
_LABELS = {kind: re.sub("[^A-Z]", "", kind.upper()) for kind in (*KINDS, "term", "text")}
_CORE = rf"(?:{'|'.join(_LABELS.values())})-[0-9a-f]{{8,64}}(?:-[0-9a-f]{{2}})?"
_PLACEHOLDER = re.compile(rf"⟦ ?{_CORE} ?⟧|\[ ?{_CORE} ?\]|(?<![\w-]){_CORE}(?![\w-])", re.IGNORECASE)
_LONGEST = 100
"""Characters of the longest placeholder with its brackets."""


class Pseudonyms:
    """The pseudonyms of one tenant, and what they stand for in the texts masked so far. Not for several threads."""

    def __init__(self, key: bytes, rules: Rules = DEFAULT) -> None:
        self._key = key
        self._rules = rules
        self._cores: dict[tuple[str, str], str] = {}
        self._values: dict[str, str] = {}

    def mask(self, text: str) -> str:
        """The text with a placeholder for everything the tenant's rules hide from models. Mask a text once."""
        lookalikes = places(_PLACEHOLDER, text) if "-" in text else []
        rest = without(text, lookalikes) if lookalikes else text
        found = find(rest, self._rules.model, self._rules.words)
        found = sorted([*found, *(Found("text", *place, "") for place in lookalikes)], key=lambda one: one.start)
        if not found:
            return text
        return replace(text, found, [self._placeholder(one.kind, text[one.start : one.end]) for one in found])

    def restore(self, text: str) -> str:
        """The text with the values behind the placeholders that `mask` has given out; any other stays as it is."""
        if not self._values:
            return text
        return _PLACEHOLDER.sub(lambda match: self._values.get(_core_of(match[0]), match[0]), text)

    def restoring(self) -> Restorer:
        """The same for a text that comes in pieces."""
        return Restorer(self)

    def mask_message(self, message: dict[str, Any]) -> dict[str, Any]:
        """A chat message with its content masked, and the arguments of its tool calls."""
        masked = dict(message)
        if isinstance(masked.get("content"), str):
            masked["content"] = self.mask(masked["content"])
        if masked.get("tool_calls"):
            masked["tool_calls"] = [self._mask_call(call) for call in masked["tool_calls"]]
        return masked

    def restore_values(self, value: Any) -> Any:
        """Arguments of a tool call, or any other JSON, with the values put back in every text."""
        if isinstance(value, str):
            return self.restore(value)
        if isinstance(value, list):
            return [self.restore_values(item) for item in value]
        if isinstance(value, dict):
            return {self.restore(str(name)): self.restore_values(item) for name, item in value.items()}
        return value

    def counts(self) -> dict[str, int]:
        """How many different values of each kind were masked: for traces."""
        counted: dict[str, int] = {}
        for kind, _ in self._cores:
            counted[kind] = counted.get(kind, 0) + 1
        return counted

    def beginnings(self) -> set[str]:
        """Every beginning of a form in which a placeholder may come back, lower case: for `Restorer`."""
        begun = {form[:length] for core in self._values for form in _forms(core) for length in range(1, len(form))}
        # Without brackets it is whole only when something else follows.
        return begun | set(self._values)

    def _placeholder(self, kind: str, value: str) -> str:
        core = self._cores.get((kind, value))
        if core is None:
            core = self._cores[kind, value] = self._new_core(kind, value)
            self._values[core.lower()] = value
        return f"⟦{core}⟧"

    def _new_core(self, kind: str, value: str) -> str:
        label = _LABELS[kind]
        canonical = canonical_form(kind, value)
        digest = self._digest(kind, canonical)
        suffix = "" if canonical == value else f"-{self._digest('spelling', value)[:2]}"
        for digits in range(DIGITS, len(digest) + 1, 2):
            core = f"{label}-{digest[:digits]}{suffix}"
            if core.lower() not in self._values:
                return core
        # Another spelling with the same two digits: its own digest tells them apart.
        return f"{label}-{self._digest('spelling', value)}"

    def _digest(self, kind: str, value: str) -> str:
        return _digest(self._key, kind, value)

    def _mask_call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = dict(call.get("function") or {})
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except ValueError:
            function["arguments"] = self.mask(str(function["arguments"]))
        else:
            function["arguments"] = json.dumps(self._mask_values(arguments), ensure_ascii=False)
        return {**call, "function": function}

    def _mask_values(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.mask(value)
        if isinstance(value, list):
            return [self._mask_values(item) for item in value]
        if isinstance(value, dict):
            # Names too: they came back with the values in them (`restore_values`).
            return {self.mask(str(name)): self._mask_values(item) for name, item in value.items()}
        return value


class Restorer:
    """Puts values back into a text that comes in pieces; holds back what may be the beginning of a placeholder."""

    def __init__(self, pseudonyms: Pseudonyms) -> None:
        self._pseudonyms = pseudonyms
        self._beginnings = pseudonyms.beginnings()
        self._held = ""
        self._last = ""

    def feed(self, piece: str) -> str:
        """What can be shown now."""
        text = self._held + piece
        cut = len(text) - self._unfinished(text)
        self._held = text[cut:]
        return self._restore(text[:cut], text[cut : cut + 1])

    def close(self) -> str:
        """What was held back, when nothing more comes."""
        text, self._held = self._held, ""
        return self._restore(text)

    def _restore(self, text: str, following: str = "") -> str:
        """With the characters around it: a placeholder neither begins nor ends in the middle of a word."""
        last, self._last = self._last, text[-1:] or self._last
        restored = self._pseudonyms.restore(last + text + following)
        return restored[len(last) : len(restored) - len(following)]

    def _unfinished(self, text: str) -> int:
        """Characters at the end that more text may complete to a placeholder."""
        if not self._beginnings:
            return 0
        tail = lower(text[-_LONGEST:])
        return next((length for length in range(len(tail), 0, -1) if tail[-length:] in self._beginnings), 0)


def pseudonyms_for(session: Session, tenant_id: UUID, settings: Settings | None = None) -> Pseudonyms:
    """The pseudonyms of a run, under the tenant's rules of this moment. Raises SettingsError without SECRET_KEY."""
    return Pseudonyms(tenant_key(settings or get_settings(), tenant_id), rules_of(session, tenant_id))


def tenant_key(settings: Settings, tenant_id: UUID) -> bytes:
    """The tenant's key: one step of HKDF (RFC 5869) over SECRET_KEY, so that tenants cannot compare pseudonyms."""
    if settings.secret_key is None:
        raise SettingsError("SECRET_KEY is not set: pseudonyms for models are made with it.")
    secret = settings.secret_key.get_secret_value().encode()
    extracted = hmac.new(b"noesis2 pseudonyms", secret, hashlib.sha256).digest()
    return hmac.new(extracted, tenant_id.bytes + b"\x01", hashlib.sha256).digest()


def traced_as(key: bytes, one: Found, value: str) -> str:
    """What logs and traces show of a finding: the placeholder that models see, of secrets only their kind."""
    if one.kind in SECRETS:
        return one.label
    return f"⟦{_LABELS[one.kind]}-{_digest(key, one.kind, canonical_form(one.kind, value))[:DIGITS]}⟧"


def _digest(key: bytes, kind: str, value: str) -> str:
    return hmac.new(key, f"{kind}\x00{value}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def canonical_form(kind: str, value: str) -> str:
    """What two spellings of one value have in common."""
    if kind in ("email", "term"):
        return lower(value)
    if kind in ("iban", "card", "vat-id", "tax-id", "social-security"):
        return "".join(c for c in value if c.isalnum()).upper()
    if kind == "phone":
        digits = "".join(c for c in value.replace("(0)", "") if c.isdigit())
        return "+" + digits.removeprefix("00") if value.lstrip().startswith(("+", "00")) else digits
    return value


def _core_of(placeholder: str) -> str:
    return placeholder.strip("⟦⟧[] \n\t").lower()


def _forms(core: str) -> Iterator[str]:
    yield f"⟦{core}⟧"
    yield f"⟦ {core} ⟧"
    yield f"[{core}]"
    yield f"[ {core} ]"
    yield core
