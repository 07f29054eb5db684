"""The few sentences the agent says by itself, in the language of the question. Pure."""

from __future__ import annotations

import re

# The commonest words of either language that the other does not have; enough to tell a question's language.
_GERMAN = """der die das und ist sind ein eine einen einem einer wie was wer wo wann warum welche welcher welches
    wieviel nicht mit für von auf im am zu zum zur bei nach über unter kann muss darf werden wird wurde hat haben es ich
    wir sie gibt den dem des als auch oder wenn"""
_ENGLISH = """the and is are a an how what who where when why which not with for of on in at to by after about under
    can must may will be was were has have it i we they there this that as also or if does did do many much"""
_FUNCTION_WORDS = {"de": frozenset(_GERMAN.split()), "en": frozenset(_ENGLISH.split())}


def language_of(question: str) -> str:
    """`de` or `en`: the language whose function words the question has more of; umlauts decide for German."""
    words = re.findall(r"\w+", question.lower())
    german = sum(word in _FUNCTION_WORDS["de"] for word in words) + bool(re.search("[äöüß]", question.lower()))
    english = sum(word in _FUNCTION_WORDS["en"] for word in words)
    return "en" if english > german else "de" if german > english else "en"


def no_evidence_text(language: str) -> str:
    """What is said when the documents do not answer the question."""
    if language == "de":
        return "Dazu habe ich in den Dokumenten, die Sie sehen dürfen, keinen Beleg gefunden."
    return "I found no evidence for this in the documents you may see."


def unproven_label(language: str) -> str:
    """What marks a statement whose citation did not hold."""
    return "(nicht belegt)" if language == "de" else "(not proven)"
