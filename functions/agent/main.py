"""The door of the agent: questions to answer."""

from __future__ import annotations

import functions_framework

from functions.agent.answering import answer_question
from shared.doors import Delivery, handles, services
from shared.events import AnswerQuestion


@functions_framework.http
@handles(AnswerQuestion)
def agent(command: AnswerQuestion, delivery: Delivery) -> None:
    """Answer the question of a run."""
    answer_question(command, services())
