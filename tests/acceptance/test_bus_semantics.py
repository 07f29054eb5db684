"""Probes of Pub/Sub's semantics through the official client: our bus must pass, Google's emulator is compared."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from google.api_core.exceptions import GoogleAPICallError

from local.bus.trial import emulator_jar, running_bus, running_emulator
from tests.acceptance import pubsub_delivery_probes, pubsub_push_probes, pubsub_resource_probes
from tests.acceptance.pubsub_target import Probe, Target

_PROBES: list[Probe] = [
    *pubsub_delivery_probes.PROBES,
    *pubsub_push_probes.PROBES,
    *pubsub_resource_probes.PROBES,
]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Our bus, one for all probes: each makes its own topics."""
    with running_bus(tmp_path_factory.mktemp("bus")) as bus:
        target = Target(bus.pubsub, bus.advance)
        yield target
        target.close()


@pytest.mark.parametrize("probe", _PROBES, ids=lambda probe: probe.__name__)
def test_the_bus_keeps_the_promises_of_pubsub(probe: Probe, ours: Target) -> None:
    """Every probe holds on our bus."""
    probe(ours)


# Whatever else the emulator does differently: a probe of these that it does not pass is a wrong probe.
_CERTAIN = {
    "a_message_is_pulled_once_and_gone_after_its_ack",
    "a_nack_brings_a_message_back_at_once",
    "a_stream_delivers_and_acknowledges",
    "an_unacknowledged_message_comes_again_after_its_deadline",
    "names_are_taken_once",
    "status_200_acknowledges",
    "what_does_not_exist_is_not_found",
}


def test_the_probes_agree_with_the_official_emulator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The certain probes hold on Google's emulator too; the table shows where it differs from the bus."""
    jar = emulator_jar()
    if jar is None:
        pytest.skip("the official emulator is not installed")
    with running_emulator(jar, tmp_path) as address:
        target = Target(address, time.sleep)
        try:
            # The emulator's clock cannot be moved: let all probes wait at the same time.
            with ThreadPoolExecutor(len(_PROBES)) as pool:
                outcomes = list(pool.map(lambda probe: _outcome(probe, target), _PROBES))
        finally:
            target.close()
    differences = {
        probe.__name__: outcome for probe, outcome in zip(_PROBES, outcomes, strict=True) if outcome is not None
    }
    with capsys.disabled():
        print(f"\nPub/Sub probes: bus {len(_PROBES)}/{len(_PROBES)}, emulator {len(_PROBES) - len(differences)}")
        for name, outcome in differences.items():
            print(f"  emulator differs: {name.replace('_', ' '):60} {outcome}")
    assert not _CERTAIN & differences.keys()


def _outcome(probe: Probe, target: Target) -> str | None:
    """None if the probe holds, else why it does not."""
    try:
        probe(target)
    except (AssertionError, pytest.fail.Exception, GoogleAPICallError, TimeoutError, KeyError, ValueError) as error:
        return f"{type(error).__name__} {str(error).strip().splitlines()[0][:80] if str(error).strip() else ''}"
    return None
