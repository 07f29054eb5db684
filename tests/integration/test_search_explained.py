"""A search explains itself: what filters took away and where the time went, on the terminal too."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from cli.main import noesis
from shared.database import tenant_session
from shared.documents.ending import withdraw
from shared.errors import PermanentError
from shared.events import Access, DocumentWithdrawn
from shared.fakes import FakeBus, FakeModels, hashed_vector
from shared.retrieval.explaining import REASONS, Explanation, explain, stage_times
from shared.retrieval.questions import Filters
from shared.retrieval.spaces import active_space
from shared.services import Services
from shared.settings import Settings
from shared.tenants.directory import Principal
from tests.integration.search_material import index, now


@pytest.fixture(autouse=True)
def _bus(bus: FakeBus) -> None:
    """What is published goes nowhere."""


@pytest.fixture
def corpus(tenant: Principal) -> Principal:
    """One document for every reason why a chunk may be out of the question."""
    index(tenant, "plain", "Urlaub eins.", "Urlaub zwei.")
    index(tenant, "versions", "Urlaub alt.")
    index(tenant, "versions", "Urlaub neu.", version=2)
    index(tenant, "withdrawn", "Urlaub fort.")
    index(tenant, "secret", "Urlaub geheim.", access=Access(groups=("board",)))
    index(tenant, "hr", "Urlaub HR.", collection="hr", metadata={"year": "2025"})
    index(tenant, "en", "Urlaub abroad.", language="en", collection="hr", metadata={"year": "2025"})
    with tenant_session(tenant.tenant_id) as session:
        gone = DocumentWithdrawn(tenant_id=tenant.tenant_id, external_id="withdrawn", source_version=1)
        withdraw(session, gone, "upstream")
    return tenant


def why(who: Principal, filters: Filters | None = None) -> Explanation:
    """The explanation of a search for holidays."""
    with tenant_session(who.tenant_id) as session:
        space = active_space(session, who.tenant_id)
        vector = hashed_vector("Urlaub", space.dimension)
        return explain(session, who.tenant_id, who.member_id, space, "Urlaub", vector, filters=filters)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(), {"visible": 5}),
        (Filters(collections=("hr",)), {"collection": 3, "visible": 2}),
        (Filters(sources=("web",)), {"source": 5}),
        (Filters(metadata={"year": "2025"}), {"metadata": 3, "visible": 2}),
        (Filters(since=datetime.now(UTC) + timedelta(days=1)), {"time": 5}),
        (Filters(until=datetime(2020, 1, 1, tzinfo=UTC)), {"time": 5}),
        (Filters(languages=("en",)), {"language": 4, "visible": 1}),
        (Filters(collections=("hr",), languages=("en",)), {"collection": 3, "language": 1, "visible": 1}),
    ],
    ids=["none", "collection", "source", "metadata", "since", "until", "language", "two"],
)
def test_every_chunk_that_is_left_out_has_a_reason(
    corpus: Principal, filters: Filters, expected: dict[str, int]
) -> None:
    """Withdrawn, superseded and hidden ones always, then what each filter takes away."""
    always = {"state": 1, "version": 1, "access": 1}
    assert why(corpus, filters).filtered == dict.fromkeys((*REASONS, "visible"), 0) | always | expected


def test_as_of_a_time_other_versions_are_left_out(corpus: Principal) -> None:
    """The older version counts as visible then, the newer one as another version."""
    moment = now(corpus)
    index(corpus, "plain", "Urlaub anders.", version=2)
    found = why(corpus, Filters(as_of=moment)).filtered
    assert (found["version"], found["visible"]) == (2, 5)


def test_no_count_depends_on_another_tenant(corpus: Principal, make_tenant: Callable[..., Principal]) -> None:
    """A neighbour's flood changes nothing."""
    before = why(corpus).filtered
    index(make_tenant(), "flood", *(f"Urlaub {n}" for n in range(30)))
    assert why(corpus).filtered == before


def test_the_time_of_every_stage_is_told(corpus: Principal) -> None:
    """Without an index the exact comparison and the words take it; nothing is negative."""
    stages = why(corpus).stages
    assert set(stages) == {"plan", "principal", "approximate", "exact", "lexical", "fuse"}
    assert all(value >= 0 for value in stages.values())
    assert stages["lexical"] > 0
    assert stages["plan"] > 0


def test_a_table_expression_is_not_charged_for_what_it_reads_from_another() -> None:
    """The first reader of a table expression runs it; its time is counted once, where it belongs."""
    scan = {"Node Type": "CTE Scan", "CTE Name": "near", "Actual Total Time": 8.0, "Actual Loops": 1}
    near = {"Node Type": "Limit", "Subplan Name": "CTE near", "Actual Total Time": 7.0, "Actual Loops": 1}
    exact = {
        "Node Type": "Result",
        "Subplan Name": "CTE exact",
        "Actual Total Time": 10.0,
        "Actual Loops": 1,
        "Plans": [scan],
    }
    root = {"Node Type": "Sort", "Actual Total Time": 12.0, "Actual Loops": 1, "Plans": [near, exact]}
    assert stage_times({"Plan": root, "Planning Time": 3.0}) == {
        "plan": 3.0,
        "principal": 0.0,
        "approximate": 7.0,
        "exact": 2.0,
        "lexical": 0.0,
        "fuse": 3.0,
    }


@pytest.fixture
def terminal(
    corpus: Principal, settings: Settings, bus: FakeBus, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs `noesis search` for the tenant with the twins of the models; returns what it prints."""
    twins = Services(settings, _models=FakeModels())
    monkeypatch.setattr("cli.searching.services", lambda: twins)
    with tenant_session(corpus.tenant_id) as session:
        slug = session.execute(text("select slug from core.tenants where tenant_id = :t"), {"t": corpus.tenant_id})
        tenant = slug.scalar_one()

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(noesis, ["search", *arguments, "--tenant", tenant])
        if isinstance(result.exception, PermanentError):
            return f"{result.exception.message} {result.exception.next_action}"
        assert result.exception is None, result.exception
        return result.output

    return run


def test_explain_on_the_terminal_is_complete(terminal: Callable[..., str]) -> None:
    """Candidates of each channel, fused, filtered out by what, space and index, times of every stage."""
    shown = terminal("Urlaub", "--explain", "--language", "de")
    for words in (
        "evidence", "space", "dense method", "index", "dense candidates", "lexical candidates", "fused", "filtered out",
        "state 1, version 1, access 1, language 1, visible 4", "database ms", "lexical ", "stages ms", "embed ",
        "re-ranking           off",
    ):  # fmt: skip
        assert words in shown, words


def test_filters_are_given_on_the_terminal(terminal: Callable[..., str]) -> None:
    """Collection, metadata, time and source narrow; a wrong one is a sentence."""
    assert "Urlaub HR." in terminal("Urlaub", "--collection", "hr", "--metadata", "year=2025", "--language", "de")
    assert "Nothing found." in terminal("Urlaub", "--as-of", "2020-01-01")
    assert "Nothing found." in terminal("Urlaub", "--since", "2100-01-01T00:00:00+0100")
    assert "Nothing found." in terminal("Urlaub", "--source", "web")
    assert "There is no such collection." in terminal("Urlaub", "--collection", "none")
    assert "Write name=value." in terminal("Urlaub", "--metadata", "year")
    assert "RERANK_MODEL is not set." in terminal("Urlaub", "--rerank")
