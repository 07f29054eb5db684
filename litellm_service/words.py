"""Words of German and English questions: language, stems, names, and the kind of answer asked for. Pure."""

# ruff: noqa: SIM905 - a list of words reads better without quotes and commas

from __future__ import annotations

import re
from typing import Literal

Language = Literal["de", "en"]
AnswerType = Literal["number", "time", "person", "place", "other"]

_GERMAN = frozenset(
    "der die das den dem des ein eine einen einem einer eines und oder nicht ist sind war waren wird werden wurde "
    "wurden hat haben hatte auf aus bei mit nach seit von vom zu zum zur im am für über unter wer wie wo wann "
    "warum wieso welche welcher welches welchem welchen was wen wem wieviel viele ich sie es er wir ihr dass sich "
    "auch als wenn kann muss soll darf gibt bis durch gegen ohne um".split()
)
_ENGLISH = frozenset(
    "the a an and or not is are was were be been being has have had do does did on from by with after since of to in "
    "at for about under who whom whose how where when why which what many much i you it he she they we that as if can "
    "must shall should may will would there this these those its their during into than".split()
)
# Of a question they say what kind of answer is wanted, not what it is about.
_MEASURES = frozenset("hoch lang lange groß oft weit alt long large big high often far old".split())
_STOPWORDS = _GERMAN | _ENGLISH | _MEASURES
_WORD = re.compile(r"[^\W_]+(?:[.,]\d+)*")
# Letters two words must share at the front to count as one: inflection in both languages is at the end.
_STEM = 6
_COMPOUND, _TAIL = 11, 5

_TIME_Q = re.compile(r"\b(wann|when|datum|date|jahr|jahre?s|year|jahrhundert|century|monat|month|decade|jahrzehnt)\b")
_NUMBER_Q = re.compile(
    r"\b(wie (viel|viele|hoch|lange?|gross|groß|oft|weit|alt|schnell|breit|tief|schwer)|wieviele?|how (many|much|long|"
    r"large|big|high|tall|often|far|old|fast|deep|wide|heavy)|anzahl|number|prozent|percent(age)?|frist|betrag|amount)\b"
)
_PERSON_Q = re.compile(r"\b(wer|wen|wem|wessen|who|whom|whose)\b")
_PLACE_Q = re.compile(r"\b(wo|woher|wohin|where|stadt|city|land|country|ort|place)\b")
_YEAR = re.compile(
    r"\b(1\d{3}|20\d{2})\b|\b(\d{1,2}\. ?)?jahrhundert|century|\b(january|february|march|april|june|july|august|"
    r"september|october|november|december|januar|februar|märz|mai|juni|juli|oktober|dezember)\b"
)
_NUMBER = re.compile(
    r"\d|%|\b(zwei|drei|vier|fünf|sechs|sieben|acht|neun|zehn|elf|zwölf|hundert|tausend|million(en)?|milliarden?|hälfte|"
    r"drittel|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|hundred|thousand|millions?|billions?|half|third)\b"
)
_NAME = re.compile(r"(?<!^)(?<![.!?] )\b[A-ZÄÖÜ][\w'’-]+(?: [A-ZÄÖÜ][\w'’-]+)*")


def language_of(text: str) -> Language:
    """'de' or 'en', by the small words of the first 2,000 characters; letters decide where there are none."""
    words = [word.lower() for word in _WORD.findall(text[:2000])]
    german, english = sum(word in _GERMAN for word in words), sum(word in _ENGLISH for word in words)
    if german != english:
        return "de" if german > english else "en"
    return "de" if re.search("[äöüßÄÖÜ]", text) else "en"


def stems(text: str) -> frozenset[str]:
    """The content words of `text`, each cut to its first letters; numbers stay whole."""
    found = (word.lower() for word in _WORD.findall(text))
    return frozenset(word if word[0].isdigit() else word[:_STEM] for word in found if word not in _STOPWORDS)


def question_stems(question: str) -> frozenset[str]:
    """The stems of a question; of a long word its end as well, for German compounds ("kündig", "frist")."""
    long = (word.lower() for word in _WORD.findall(question) if len(word) >= _COMPOUND)
    return stems(question) | {word[-_TAIL:] for word in long if not word[0].isdigit()}


def names_and_numbers(question: str) -> frozenset[str]:
    """Numbers and capitalised words of a question but its first word, lower case."""
    words = _WORD.findall(question)
    return frozenset(
        word.lower()
        for index, word in enumerate(words)
        if word[0].isdigit() or (index and word[0].isupper() and word.lower() not in _STOPWORDS)
    )


def answer_type(question: str) -> AnswerType:
    """What the question asks for, by its question words."""
    lowered = question.lower()
    if _NUMBER_Q.search(lowered):
        return "number"
    if _TIME_Q.search(lowered):
        return "time"
    if _PERSON_Q.search(lowered):
        return "person"
    return "place" if _PLACE_Q.search(lowered) else "other"


def fits_type(wanted: AnswerType, sentence: str, question: str) -> float:
    """1 when `sentence` has something of the wanted kind that is not in the question, -1 when not, 0 for 'other'."""
    if wanted == "other":
        return 0.0
    lowered = sentence.lower()
    if wanted == "time":
        found = any(hit.group() not in question.lower() for hit in _YEAR.finditer(lowered))
    elif wanted == "number":
        found = _NUMBER.search(lowered) is not None
    else:
        found = any(name not in question for name in _NAME.findall(sentence))
    return 1.0 if found else -1.0
