"""Where a text holds something that identifies a person or opens a door. Pure, linear in the length of the text."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from dataclasses import replace as replaced

from shared.masking.names import names
from shared.masking.numbers import cards, ibans, insurance_numbers, tax_ids, travel_documents, vat_ids
from shared.masking.phones import phones
from shared.masking.places import Place, fold, without
from shared.masking.secrets import bearers, keys, named_secrets, private_keys, tokens, url_passwords
from shared.masking.wires import emails, ipv4, ipv6

SECRETS = frozenset({"key", "jwt", "password"})
"""Kinds that open doors: nobody can switch them off for what leaves in logs and traces."""

# The order decides what a character belongs to: what has a form of its own before what is only digits.
_RECOGNISERS = (
    ("key", "[key]", private_keys),
    ("jwt", "[jwt]", tokens),
    ("password", "[password]", url_passwords),
    ("password", "[token]", bearers),
    ("key", "[key]", keys),
    ("password", "[secret]", named_secrets),
    ("email", "[email]", emails),
    ("iban", "[iban]", ibans),
    ("passport", "[passport]", travel_documents),
    ("vat-id", "[vat-id]", vat_ids),
    ("card", "[card]", cards),
    ("social-security", "[social-security]", insurance_numbers),
    ("tax-id", "[tax-id]", tax_ids),
    ("ip", "[ip]", ipv6),
    ("ip", "[ip]", ipv4),
    ("phone", "[phone]", phones),
    ("name", "[name]", names),
)

_NUMBERS = frozenset({"iban", "passport", "vat-id", "card", "social-security", "tax-id", "phone"})
FEWEST_DIGITS = 5
"""Every kind of number has at least as many; most words and sentences have fewer, and need not be looked through."""

KINDS = tuple(dict.fromkeys(kind for kind, _, _ in _RECOGNISERS))
"""Every kind that is recognised, in the order of precedence. `term` is a tenant's own (`Vocabulary.terms`)."""


@dataclass(frozen=True, slots=True)
class Found:
    """Something of a kind in text[start:end]; `label` is what logs show in its place."""

    kind: str
    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words of a tenant: `terms` are masked wherever they stand as whole words, `allowed` are never masked.

    Both compare without case. An allowed "@example.org" allows every address at this domain.
    """

    terms: tuple[str, ...] = ()
    allowed: frozenset[str] = frozenset()


NO_WORDS = Vocabulary()


def find(text: str, kinds: Collection[str] = KINDS, words: Vocabulary = NO_WORDS) -> list[Found]:
    """What is found, in order, without overlaps."""
    found: list[Found] = []
    read, offsets = fold(text)
    rest = read
    few = sum(map(read.count, "0123456789")) < FEWEST_DIGITS
    for kind, label, recognise in _RECOGNISERS:
        if few and kind in _NUMBERS:
            continue
        # What is allowed keeps its place too: no later recogniser may see half of it as something else.
        places = recognise(rest)
        if places:
            rest = without(rest, places)
            if kind in kinds:
                found += (Found(kind, start, end, label) for start, end in places)
    if words.terms:
        found += (Found("term", start, end, "[term]") for start, end in _terms(rest, words.terms))
    if words.allowed:
        found = [one for one in found if not _is_allowed(read[one.start : one.end], one.kind, words.allowed)]
    if offsets is not None:
        found = [replaced(one, start=offsets[one.start], end=offsets[one.end - 1] + 1) for one in found]
    return sorted(found, key=lambda one: one.start)


def replace(text: str, found: Iterable[Found], by: Iterable[str]) -> str:
    """The text with each finding replaced by its counterpart."""
    parts, position = [], 0
    for one, replacement in zip(found, by, strict=True):
        parts += [text[position : one.start], replacement]
        position = one.end
    return "".join([*parts, text[position:]])


def _terms(text: str, terms: Iterable[str]) -> list[Place]:
    """Whole words only. `str.find` a term is far faster than one pattern of all of them."""
    lowered = lower(text)
    taken: list[Place] = []
    for term in sorted((lower(term) for term in terms), key=len, reverse=True):
        start = lowered.find(term)
        while start >= 0:
            end = start + len(term)
            if _is_whole(lowered, start, end):
                taken.append((start, end))
                lowered = lowered[:start] + "\x00" * len(term) + lowered[end:]
            start = lowered.find(term, end)
    return sorted(taken)


def lower(text: str) -> str:
    """Lower case of the same length: three characters of Unicode grow otherwise and would shift every place."""
    lowered = text.lower()
    return lowered if len(lowered) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def _is_whole(text: str, start: int, end: int) -> bool:
    before, after = text[start - 1 : start], text[end : end + 1]
    return not (before.isalnum() and text[start].isalnum()) and not (after.isalnum() and text[end - 1].isalnum())


def _is_allowed(value: str, kind: str, allowed: frozenset[str]) -> bool:
    lowered = lower(value)
    return lowered in allowed or (kind == "email" and "@" + lowered.rpartition("@")[2] in allowed)
