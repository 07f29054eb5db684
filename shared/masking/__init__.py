"""Personal data and secrets leave no trace at the border: logs, traces, messages for operators. Pure.

`mask` replaces what it finds by its kind in brackets; `find` tells where it is, for pseudonyms (`shared.privacy`).
Where a check digit exists it decides, so that order numbers stay readable; dates, times, UUIDs, trace ids and amounts
stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Protocol

from shared.masking.finding import KINDS, NO_WORDS, SECRETS, Found, Vocabulary, find, lower, replace

LIMIT = 8_000
"""Characters of one text that are looked at; what is longer is cut, because nothing unseen may leave."""


# Most of what is logged: ids, small numbers, times, codes and words in small letters. Whatever is recognised has a
# capital letter, more digits, one of @ : =, twelve letters in one piece, or an issuer's prefix.
_HARMLESS = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{1,4}(?:\.\d{1,9})?|True|False|None"
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|\+00:00)?"
    r"|(?!.*(?:[spr]k[_-]|xox|gh[a-z]_|glpat|hf_|npm_|pypi))(?:[a-z]{0,11}[ .,()/_-])*[a-z]{0,11}"
)


class Mask(Protocol):
    """`mask` with the kinds and words of a tenant."""

    def __call__(self, value: str, *, limit: int = LIMIT) -> str:
        """The text masked, and cut at `limit`."""


def label_of(one: Found, value: str) -> str:
    """The kind in brackets."""
    return one.label


def mask(
    value: str,
    kinds: Collection[str] = KINDS,
    words: Vocabulary = NO_WORDS,
    name: Callable[[Found, str], str] = label_of,
    *,
    limit: int = LIMIT,
) -> str:
    """The text with addresses, numbers, names, tokens and keys replaced by their kind in brackets, or by `name`.

    Longer texts than `limit` are cut.
    """
    if not words.terms and _HARMLESS.fullmatch(value):
        return value
    if len(value) > limit:
        value = value[:limit] + " […]"
    found = find(value, kinds, words)
    return replace(value, found, (name(one, value[one.start : one.end]) for one in found)) if found else value


__all__ = [
    "KINDS",
    "LIMIT",
    "NO_WORDS",
    "SECRETS",
    "Found",
    "Mask",
    "Vocabulary",
    "find",
    "label_of",
    "lower",
    "mask",
    "replace",
]
