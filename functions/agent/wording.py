"""The few sentences the agent says by itself, in the language of the question. Pure."""

from __future__ import annotations

from shared.retrieval.questions import language_of as language_or_simple


def language_of(question: str) -> str:
    """`de` or `en`: the language an answer is framed in; English when the question does not tell."""
    found = language_or_simple(question)
    return "en" if found == "simple" else found


def no_evidence_text(language: str) -> str:
    """What is said when the documents do not answer the question."""
    if language == "de":
        return "Dazu habe ich in den Dokumenten, die Sie sehen dürfen, keinen Beleg gefunden."
    return "I found no evidence for this in the documents you may see."


def unproven_label(language: str) -> str:
    """What marks a statement whose citation did not hold."""
    return "(nicht belegt)" if language == "de" else "(not proven)"
