"""What upstream teams read is what the code does: pages and schemas are generated, and nothing in them is stale."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cli.contract import EXAMPLES, FIELDS, INBOUND, OUTBOUND, PUBLIC, body, schema
from cli.events import events, faults, hints
from cli.reference import document_reasons, message_reasons, render
from local.bus import topology as bus_topology
from shared import messaging
from shared.dead_letters.replay import COMMANDS, topic_for
from shared.errors import PermanentError
from shared.events import MESSAGES, AnswerQuestion, DocumentSubmitted, EmbedChunks, Message, decode
from shared.fakes import FakeBus

ROOT = Path(__file__).parents[2]
TOPOLOGY: dict[str, Any] = yaml.safe_load((ROOT / "terraform/topology.yaml").read_text())
STALE = "run `.venv/bin/noesis events reference`"


@pytest.mark.parametrize("page", sorted(render()))
def test_the_pages_are_what_the_code_generates(page: str) -> None:
    """Whoever changes an event, a reason or the contract writes the pages anew."""
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == render()[page], STALE


def test_no_schema_is_left_of_an_event_that_is_gone() -> None:
    """docs/schemas holds the public events and nothing else."""
    assert {path.stem for path in (ROOT / "docs/schemas").glob("*.json")} == set(PUBLIC), STALE


def test_commands_are_not_public() -> None:
    """Between our own services we may change what we like; what leaves or enters the platform is all there is."""
    internal = {"embed-chunks", "answer-question", "run-job"}
    assert set(PUBLIC) == {kind.wire_name for kind in MESSAGES.values()} - internal


@pytest.mark.parametrize("kind", PUBLIC.values(), ids=list(PUBLIC))
def test_every_field_of_a_public_event_is_explained(kind: type[Message]) -> None:
    """Name, type and meaning, in the schema and on the page; the example shows one of each event."""
    made = schema(kind)
    assert set(kind.model_fields) - set(made["properties"]) <= {"idempotency_key"}
    for name, declared in made["properties"].items():
        assert declared["description"], name
    assert not FIELDS.keys() - {name for one in PUBLIC.values() for name in _all_fields(schema(one))}
    assert decode(EXAMPLES[kind.wire_name].data(), EXAMPLES[kind.wire_name].attributes()) == EXAMPLES[kind.wire_name]


def _all_fields(made: dict[str, Any]) -> set[str]:
    nested = [one["properties"] for one in made.get("$defs", {}).values()]
    return set(made["properties"]).union(*nested)


def _jsonschema() -> Any:
    return pytest.importorskip("jsonschema", reason="jsonschema (extra dev) is not installed")


def _valid(kind: type[Message], found: Any) -> bool:
    jsonschema = _jsonschema()
    checker = jsonschema.Draft202012Validator(schema(kind), format_checker=jsonschema.FormatChecker())
    return bool(checker.is_valid(found))


@pytest.mark.parametrize("kind", PUBLIC.values(), ids=list(PUBLIC))
def test_schemas_are_schemas_and_hold_for_what_is_sent(kind: type[Message]) -> None:
    """Valid JSON Schema 2020-12; the example and the whole message as it leaves both satisfy it."""
    _jsonschema().Draft202012Validator.check_schema(schema(kind))
    example = EXAMPLES[kind.wire_name]
    assert _valid(kind, json.loads(example.data()))
    assert _valid(kind, body(example))
    other = next(one for one in PUBLIC.values() if one is not kind)
    assert not _valid(kind, body(EXAMPLES[other.wire_name]))


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=20), st.just([]), st.just({}))


@given(
    st.sampled_from([kind.wire_name for kind in INBOUND]),
    st.dictionaries(st.sampled_from(sorted(FIELDS)), VALUES, max_size=4),
    st.sets(st.sampled_from(["tenant_id", "external_id", "content", "name", "version"]), max_size=2),
)
def test_what_the_schema_allows_is_accepted(name: str, changed: dict[str, Any], removed: set[str]) -> None:
    """Who validates by the schema before publishing is never refused for the shape of the message."""
    found = {k: v for k, v in (body(EXAMPLES[name]) | changed).items() if k not in removed}
    if _valid(PUBLIC[name], found) and not _unsafe(found):
        decode(json.dumps(found).encode(), {})


def _unsafe(found: dict[str, Any]) -> bool:
    # What JSON Schema cannot say: no NUL, no lone surrogates, base64 that decodes, a time zone, 256 KiB.
    text = json.dumps(found)
    return "\\u0000" in text or "\\ud" in text or not _is_base64(found.get("content"))


def _is_base64(content: object) -> bool:
    try:
        base64.b64decode(str(content or ""), validate=True)
    except ValueError:
        return False
    return True


def test_the_asyncapi_document_refers_to_what_exists() -> None:
    """Every reference inside it and to the schemas resolves; its channels are the topology's topics."""
    document = yaml.safe_load((ROOT / "docs/asyncapi.yaml").read_text())
    references = re.findall(r'"\$ref": "([^"]+)"', json.dumps(document))
    assert references
    for reference in references:
        if reference.startswith("#/"):
            found: Any = document
            for part in reference[2:].split("/"):
                found = found[part]
        else:
            assert (ROOT / "docs" / reference).is_file()
    addresses = {channel["address"] for channel in document["channels"].values()}
    assert addresses == {"documents-{source}"} | {kind.topic for kind in OUTBOUND}
    assert addresses - {"documents-{source}"} <= set(TOPOLOGY["topics"])
    assert document["asyncapi"] == "3.0.0"
    actions = {name: operation["action"] for name, operation in document["operations"].items()}
    assert actions["receive-documents"] == "receive"


def test_every_reason_tells_what_to_do() -> None:
    """A code in kebab-case, a sentence, a next action; nothing that a program fills in is left open."""
    found = [*document_reasons(), *message_reasons()]
    assert {"encrypted", "too-large", "attempts-exhausted", "source-not-bound", "malformed-message"} <= {
        reason.code for reason in found
    }
    for reason in found:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", reason.code)
        assert reason.message, reason.code
        assert reason.next_action, reason.code
        assert "{" not in reason.message + reason.next_action, reason.code


def test_the_page_shows_how_a_new_source_is_made(tmp_path: Path) -> None:
    """The YAML on the page, put into the topology, is a topic whose documents reach ingest as that source."""
    page = (ROOT / "docs/events.md").read_text(encoding="utf-8")
    added = yaml.safe_load(page.rpartition("```yaml\n")[2].partition("```")[0])
    merged = TOPOLOGY | {part: TOPOLOGY[part] | added[part] for part in added}
    path = tmp_path / "topology.yaml"
    path.write_text(yaml.safe_dump(merged))
    declared = bus_topology.read(path, "p", "l", {"ingest": "http://127.0.0.1:1"})
    (subscription,) = [one for one in declared.subscriptions if one.name.endswith("/ingest-wiki")]
    assert subscription.push_config.push_endpoint == "http://127.0.0.1:1/sources/wiki"
    assert subscription.topic in {topic.name for topic in declared.topics}
    event = EXAMPLES["document-submitted"]
    assert topic_for("ingest-wiki", event) == subscription.topic.rpartition("/")[2]


@pytest.mark.parametrize("name", [name for name, one in TOPOLOGY["subscriptions"].items() if "dead_letter" in one])
def test_a_letter_of_every_subscription_finds_its_way_back(name: str) -> None:
    """What a subscription carries is replayed to its topic, and to no other."""
    topic = TOPOLOGY["subscriptions"][name]["topic"]
    for wire_name in TOPOLOGY["topics"][topic]["carries"]:
        if wire_name == "run-job":
            continue  # jobs come again by their schedule
        assert topic_for(name, _any(wire_name)) == topic
    for other in {"document-submitted", "embed-chunks", "answer-question"} - set(TOPOLOGY["topics"][topic]["carries"]):
        assert topic_for(name, _any(other)) is None
    assert set(COMMANDS) <= set(TOPOLOGY["subscriptions"])


def _any(wire_name: str) -> Message:
    if wire_name in EXAMPLES:
        return EXAMPLES[wire_name]
    one = uuid4()
    if wire_name == "embed-chunks":
        return EmbedChunks(tenant_id=one, document_id=one, version_id=one, space_id=one, chunk_ids=(one,))
    return AnswerQuestion(tenant_id=one, run_id=one)


# ---- the command line ------------------------------------------------------------------------------------------------


def _validate(found: object) -> tuple[int, str]:
    result = CliRunner().invoke(events, ["validate", "-"], input=json.dumps(found))
    return result.exit_code, result.output


def test_validate_names_the_field_and_never_its_content() -> None:
    """One line for everything that is wrong; what somebody wrote is not repeated, also not as a name."""
    secret = "Gehalt-von-Eva"
    found = body(EXAMPLES["document-submitted"]) | {
        "tenant_id": secret,
        "source_version": secret,
        "collection": secret + "!",
        "metadata": {secret: 7},
        "access": {secret: []},
    }
    status, output = _validate(found)
    assert status == 1
    lines = output.splitlines()
    assert lines[0] == "1: document-submitted: refused"
    places = {line.strip().partition(":")[0] for line in lines[1:]}
    assert places >= {"tenant_id", "source_version", "collection", "metadata.…", "access.…"}
    assert secret not in output


def test_validate_accepts_what_the_doors_accept_and_notes_what_is_odd() -> None:
    """A list of messages; a misspelt field is valid and mentioned."""
    good = body(EXAMPLES["document-submitted"])
    odd = {k: v for k, v in good.items() if k not in ("source_version", "event_id")} | {"sourceVersion": 3}
    status, output = _validate([good, odd])
    assert status == 0
    assert "1: document-submitted: valid\n2: document-submitted: valid\n" in output
    assert "sourceVersion: not a field" in output
    assert "source_version: without one" in output
    assert hints(good) == []


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"name": "document-submitted", "version": 2}, "name or version"),
        ([1], "not a JSON object"),
        (body(EXAMPLES["document-submitted"]) | {"uri": "gs://b/x"}, "either content (base64) or uri"),
        (body(EXAMPLES["document-submitted"]) | {"content": "a" * 400_000}, "262144 bytes"),
        (body(EXAMPLES["document-submitted"]) | {"title": "a\u0000b"}, "title: Value error, must not contain NUL"),
        ({"name": "document-submitted", "version": 1}, "tenant_id: Field required"),
    ],
    ids=["version", "no-object", "both", "large", "nul", "missing"],
)
def test_validate_says_what_is_wrong(found: object, told: str) -> None:
    """In words that the sender can act on."""
    status, output = _validate(found)
    assert (status, told in output) == (1, True), output


@given(st.recursive(VALUES, lambda inner: st.dictionaries(st.sampled_from(["name", "version"]), inner), max_leaves=5))
def test_validate_and_the_doors_agree(found: object) -> None:
    """What it refuses the doors refuse, whatever it is."""
    try:
        decode(json.dumps(found).encode(), {})
        accepted = True
    except PermanentError:
        accepted = False
    assert (faults(found) == []) == accepted


def test_publish_sends_all_or_nothing() -> None:
    """As an upstream system does it: to the topic of the source, after every message was checked."""
    bus = FakeBus()
    messaging.use_bus(bus)
    try:
        good = body(EXAMPLES["document-submitted"])
        refused = CliRunner().invoke(events, ["publish", "-"], input=json.dumps([good, {"name": "x"}]))
        assert (refused.exit_code, bus.published) == (1, [])
        outbound = CliRunner().invoke(events, ["publish", "-"], input=json.dumps(body(EXAMPLES["document-indexed"])))
        assert (outbound.exit_code, bus.published) == (1, [])
        assert "upstream systems do not publish" in outbound.output
        sent = CliRunner().invoke(events, ["publish", "-", "--source", "wiki"], input=json.dumps(good))
        assert sent.exit_code == 0, sent.output
    finally:
        messaging.use_bus(None)
    (row,) = bus.published
    assert row.topic == "documents-wiki"
    message = decode(row.data.encode(), row.attributes)
    assert isinstance(message, DocumentSubmitted)
    assert str(message.event_id) in sent.output
    assert message.trace_id in sent.output


def test_schema_prints_what_the_page_holds() -> None:
    """The names without an argument, the schema with one."""
    names = CliRunner().invoke(events, ["schema"]).output
    assert all(name in names for name in PUBLIC)
    printed = CliRunner().invoke(events, ["schema", "document-failed"]).output
    assert printed == (ROOT / "docs/schemas/document-failed.json").read_text(encoding="utf-8")
