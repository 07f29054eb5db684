"""terraform/topology.yaml, the events and the doors are one house."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from functions.maintenance.running import JOBS
from shared.events import MESSAGES, Message
from shared.tenants.directory import SOURCES
from web.streams import OPEN, OPEN_PER_TENANT

ROOT = Path(__file__).parents[2]
TOPOLOGY: dict[str, Any] = yaml.safe_load((ROOT / "terraform/topology.yaml").read_text())


def _handled(service: str) -> set[str]:
    """Names of the messages that a service's doors handle, read from its main.py."""
    tree = ast.parse((ROOT / TOPOLOGY["services"][service]["source"]).read_text())
    classes = {kind.__name__: kind.wire_name for kind in MESSAGES.values()}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "handles":
            found |= {classes[argument.id] for argument in node.args if isinstance(argument, ast.Name)}
    return found


def _pushed() -> list[tuple[str, dict[str, Any]]]:
    return [(name, s) for name, s in TOPOLOGY["subscriptions"].items() if "push" in s]


@pytest.mark.parametrize("message", MESSAGES.values(), ids=lambda m: m.wire_name)
def test_every_message_has_its_topic(message: type[Message]) -> None:
    """What the code publishes to exists, and the topic says that it carries it."""
    assert message.wire_name in TOPOLOGY["topics"][message.topic]["carries"]


def test_topics_carry_only_known_messages() -> None:
    """No topic promises a message that the code does not have."""
    carried = {name for topic in TOPOLOGY["topics"].values() for name in topic["carries"]}
    assert carried == {message.wire_name for message in MESSAGES.values()}


@pytest.mark.parametrize(("name", "subscription"), _pushed(), ids=[name for name, _ in _pushed()])
def test_every_subscription_ends_at_a_door_that_handles_it(name: str, subscription: dict[str, Any]) -> None:
    """A pushed topic's messages are exactly what its service can decode."""
    carries = set(TOPOLOGY["topics"][subscription["topic"]]["carries"])
    assert carries <= _handled(subscription["push"]["service"])


def test_every_handled_message_reaches_its_door() -> None:
    """No door waits for a message that nobody pushes to it."""
    for service, settings in TOPOLOGY["services"].items():
        if settings["kind"] == "function":
            pushed = {
                carried
                for _, s in _pushed()
                if s["push"]["service"] == service
                for carried in TOPOLOGY["topics"][s["topic"]]["carries"]
            }
            assert _handled(service) == pushed, service


def test_every_source_has_its_topic_and_path() -> None:
    """A source of documents is a topic, pushed to the path that names it."""
    for source in SOURCES:
        subscription = TOPOLOGY["subscriptions"][f"ingest-{source}"]
        assert subscription["topic"] == f"documents-{source}"
        assert subscription["push"]["path"] == f"/sources/{source}"


def test_deadlines_nest() -> None:
    """A service gives up before Pub/Sub does: its timeout is below the ack deadline, and that within 600 s."""
    for name, subscription in _pushed():
        service = TOPOLOGY["services"][subscription["push"]["service"]]
        own = service["timeout"] if name != "dead-letter-archive" else 0
        assert own < subscription["ack_deadline"] <= 600, name


def test_work_that_fails_for_good_ends_in_the_dead_letters() -> None:
    """Every push has a dead letter but the archive of dead letters itself; retries as the requirements say."""
    for name, subscription in _pushed():
        assert subscription["retry"] == {"minimum": 30, "maximum": 300}
        if subscription["topic"] != "dead-letters":
            assert subscription["dead_letter"] == {"topic": "dead-letters", "attempts": 5}, name


def test_every_schedule_runs_a_known_job() -> None:
    """The scheduler asks only for jobs that exist, through a topic that carries the command."""
    for name, schedule in TOPOLOGY["schedules"].items():
        assert schedule["job"] in JOBS, name
        assert "run-job" in TOPOLOGY["topics"][schedule["topic"]]["carries"]


def test_work_of_the_owner_runs_as_a_process_of_its_own() -> None:
    """Exactly the schedules of jobs that need the owner's connection say so."""
    for name, schedule in TOPOLOGY["schedules"].items():
        needs_owner = getattr(inspect.getmodule(JOBS[schedule["job"]]), "NEEDS_OWNER", False)
        assert schedule.get("process", False) == needs_owner, name


@pytest.mark.parametrize("stage", ["staging", "prod"])
def test_all_instances_fit_into_the_database(stage: str) -> None:
    """Instances x pool of all services, with the operators' two each for maintenance, stay below max_connections."""
    used = sum(
        service[stage]["maximum"] * (service["pool"] + (2 if name == "maintenance" else 0))
        for name, service in TOPOLOGY["services"].items()
    )
    assert used <= TOPOLOGY["database"]["max_connections"][stage] - 10


@pytest.mark.parametrize("stage", ["staging", "prod"])
def test_a_pool_serves_its_concurrency(stage: str) -> None:
    """A function never has more requests than connections."""
    for name, service in TOPOLOGY["services"].items():
        if service["kind"] == "function":
            assert service["pool"] >= service["concurrency"], name


def test_open_streams_leave_threads_to_other_requests() -> None:
    """An instance takes a third more requests than it keeps streams open, and one tenant gets half of these."""
    assert TOPOLOGY["services"]["web"]["concurrency"] >= OPEN * 3 // 2
    assert OPEN_PER_TENANT * 2 <= OPEN
