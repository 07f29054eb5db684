"""Follow-ups: which questions lean on what was said before, and what a model's rewriting is worth."""

from __future__ import annotations

import pytest

from functions.agent.remembering import joined, leans, one_line
from shared.conversations.memory import Turn
from shared.conversations.runs import QUESTION_LIMIT


@pytest.mark.parametrize(
    "question",
    [
        "Und in der Probezeit?",
        "Was ist mit Teilzeit?",
        "Warum?",
        "Wie lange genau?",
        "Gilt das auch für Azubis?",
        "Wo wird er beantragt?",
        "And for trainees?",
        "What about part-time?",
        "How long does it take?",
        "Why?",
    ],
)
def test_a_question_that_refers_back_leans(question: str) -> None:
    """It opens with "und", says "er" or "it", or is only a question word."""
    assert leans(question)


@pytest.mark.parametrize(
    "question",
    [
        "Wie viele Urlaubstage haben Beschäftigte?",
        "Urlaubstage?",
        "Unterhaltskosten der Pumpe",
        "What is the warranty period of the pump?",
        "Which torque for the housing?",
        "Andere Fristen bei Kündigung",
        "Wie ist die Kündigungsfrist geregelt, wenn eine Beschäftigte zehn Jahre im Betrieb war und er gilt?",
    ],
)
def test_a_question_that_stands_by_itself_does_not_lean(question: str) -> None:
    """It names what it is about; a long one says enough."""
    assert not leans(question)


def test_a_chain_of_follow_ups_goes_back_to_what_they_are_about() -> None:
    """The last question that stood by itself, not the follow-up before."""
    turns = [Turn("Wie viele Urlaubstage gibt es?", "30"), Turn("Und in der Probezeit?", "12")]
    assert joined("Und danach?", turns) == "Wie viele Urlaubstage gibt es? Und danach?"
    assert joined("Wie hoch ist der Zuschuss?", turns) == "Wie hoch ist der Zuschuss?"
    assert joined("Und?", [Turn("Und wie?", "x")]) == "Und wie? Und?"
    assert len(joined("Und?", [Turn("x" * QUESTION_LIMIT, "y")])) == QUESTION_LIMIT


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("„Wie viele Tage?“\n", "Wie viele Tage?"),
        ("Wie viele\nTage?", "Wie viele Tage?"),
        ("", ""),
        (" … ", ""),
        ("x" * (QUESTION_LIMIT + 1), ""),
    ],
)
def test_only_a_question_counts_as_a_rewritten_one(written: str, kept: str) -> None:
    """Something else is not searched for."""
    assert one_line(written) == kept
