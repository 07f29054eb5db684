"""What may be asked: a question, its vector and the filters of a search, checked before they reach the database."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from shared.errors import PermanentError

LONGEST_QUESTION = 8_000
"""Characters. A question longer than a page is a document; models cut it off anyway."""

MOST_VALUES = 100
"""Values of one filter: an array in the query, not a bulk load."""

LANGUAGES = ("de", "en", "simple")

# The commonest words of either language that the other does not have; enough to tell a question's language.
_GERMAN = """der die das und ist sind ein eine einen einem einer wie wer wo wann warum welche welcher welches welchem
    nicht mit für von auf im am zu zum zur bei nach über unter kann muss darf werden wird wurde wurden hat haben es ich
    wir sie gibt den dem des als auch oder wenn wieviel viele durch aus"""
_ENGLISH = """the and is are a an how what who where when why which not with for of on to by about can must may be
    were has have it i we they there this that as also or if does did do many much from at"""
# What ingestion takes out of documents, because it breaks words apart and nobody sees it: soft hyphens, zero width
# spaces, word joiners, byte order marks.
_INVISIBLE = re.compile("[\xad\u200b\u2060\ufeff]")

_WORDS = {"de": frozenset(_GERMAN.split()), "en": frozenset(_ENGLISH.split())}


@dataclass(frozen=True, slots=True)
class Filters:
    """What a search is narrowed to; empty means everything the member may see.

    `collections` are names, `sources` as submitted, `languages` of the chunk, `metadata` must be contained in the
    document's, `since` (inclusive) and `until` (exclusive) are when the document last changed, aware. `as_of` asks the
    versions that answered at that moment, aware: documents deleted or withdrawn since then do not appear, and access,
    collection and metadata are today's.
    """

    collections: Sequence[str] = ()
    sources: Sequence[str] = ()
    languages: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    since: datetime | None = None
    until: datetime | None = None
    as_of: datetime | None = None


def checked_question(question: str) -> str:
    """The question as documents are read: in NFC, without surrounding white space and characters that nobody sees.

    Raises PermanentError `empty-question` (nothing that could be searched for), `question-too-long`, or
    `bad-characters` (NUL, lone surrogates: the driver's stream would go out of step, FACTS).
    """
    stripped = written(question).strip()
    if len(stripped) > LONGEST_QUESTION:
        raise PermanentError(
            "question-too-long",
            f"The question has {len(stripped)} characters, {LONGEST_QUESTION} are allowed.",
            "Shorten it; submit long texts as documents.",
        )
    _check_text(stripped)
    if not any(character.isalnum() for character in stripped):
        raise PermanentError("empty-question", "The question has no words.", "Ask in words or numbers.")
    return stripped


def written(question: str) -> str:
    """The question in the form that texts of documents have: else another vector is asked for than theirs."""
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", question.replace("\xa0", " ")))


def checked_vector(vector: Sequence[float], dimension: int) -> Sequence[float]:
    """The vector, if the space can hold it. Raises PermanentError `wrong-vector`: dimension, NaN, infinity, zeros."""
    if len(vector) != dimension:
        raise _wrong_vector(f"it has {len(vector)} numbers instead of {dimension}")
    if not all(map(math.isfinite, vector)):
        raise _wrong_vector("it has NaN or infinity")
    if not any(vector):
        raise _wrong_vector("a vector of zeros has no direction")
    return vector


def checked_filters(filters: Filters) -> Filters:
    """The filters, if they can be asked. Raises PermanentError `bad-filter` or `bad-characters`."""
    for name, values in (
        ("collections", filters.collections),
        ("sources", filters.sources),
        ("languages", filters.languages),
    ):
        if isinstance(values, str) or len(values) > MOST_VALUES:
            raise _bad_filter(f"{name} takes a list of at most {MOST_VALUES} values")
        for value in values:
            _check_text(value)
    if unknown := sorted(set(filters.languages) - set(LANGUAGES)):
        raise _bad_filter(f"there is no language {unknown[0]!r}; use {', '.join(LANGUAGES)}")
    for moment in (filters.since, filters.until, filters.as_of):
        if moment is not None and moment.tzinfo is None:
            raise _bad_filter("times need a time zone")
    if filters.metadata:
        _check_text(metadata_json(filters.metadata) or "")
    return filters


def metadata_json(metadata: Mapping[str, Any]) -> str | None:
    """Metadata to be contained, as JSON; None for none. Raises PermanentError `bad-filter`."""
    if not metadata:
        return None
    try:
        return json.dumps(metadata, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        raise _bad_filter("metadata must be JSON") from None


def language_of(question: str) -> str:
    """`de`, `en`, or `simple` when neither has more function words; umlauts count for German."""
    lowered = question.lower()
    words = re.findall(r"\w+", lowered)
    german = sum(word in _WORDS["de"] for word in words) + bool(re.search("[äöüß]", lowered))
    english = sum(word in _WORDS["en"] for word in words)
    return "en" if english > german else "de" if german > english else "simple"


def _check_text(text: str) -> None:
    if "\x00" in text or "\\u0000" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise PermanentError(
            "bad-characters", "The text contains NUL or half a character.", "Send well-formed Unicode text."
        )


def _wrong_vector(problem: str) -> PermanentError:
    return PermanentError(
        "wrong-vector", f"The vector does not fit the space: {problem}.", "Embed the question with the space's model."
    )


def _bad_filter(problem: str) -> PermanentError:
    return PermanentError("bad-filter", f"The filter cannot be used: {problem}.", "Correct the filter.")
