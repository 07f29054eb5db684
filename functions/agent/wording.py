"""The few sentences the agent says by itself, in the language of the question. Pure."""

from __future__ import annotations

from shared.retrieval.questions import language_of as language_or_simple


def language_of(question: str, default: str = "en") -> str:
    """`de` or `en`: the language an answer is framed in; the default when the text does not tell."""
    found = language_or_simple(question)
    return default if found == "simple" else found


def no_evidence_text(language: str) -> str:
    """What is said when the documents do not answer the question."""
    if language == "de":
        return "Dazu habe ich in den Dokumenten, die Sie sehen dürfen, keinen Beleg gefunden."
    return "I found no evidence for this in the documents you may see."


def unproven_label(language: str) -> str:
    """What marks a statement whose citation did not hold."""
    return "(nicht belegt)" if language == "de" else "(not proven)"


def partial_note(language: str) -> str:
    """Said under an answer that was given before everything had been looked up."""
    if language == "de":
        return "(Die Schritte für diese Frage waren aufgebraucht; die Antwort beruht auf dem bis dahin Gefundenen.)"
    return "(The steps for this question were used up; the answer rests on what had been found by then.)"


def cut_note(language: str) -> str:
    """Said under an answer that ends at the length limit."""
    return "(Die Antwort endet an der Längengrenze.)" if language == "de" else "(The answer ends at the length limit.)"


def framed(text: str, language: str) -> str:
    """An answer in another language than the question, with a sentence that says so."""
    told = "Die Antwort liegt nur in einer anderen Sprache vor:" if language == "de" else "In another language only:"
    return f"{told}\n\n{text}"
