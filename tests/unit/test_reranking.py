"""Re-ranking: answers of providers are believed only when they judge every document, and the bundled model's sense."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litellm_service.configuration import own_address, proxy_config
from litellm_service.relevance import MAX_DOCUMENTS, BadRequest, read_request, relevances
from shared.errors import Postponed, TransientError
from shared.llm import LiteLLM
from shared.rerankings import UnusableRanking, reranked
from tests.unit.test_extractive_answers import HANDBOOK, WEATHER, by_letters
from tests.unit.test_extractive_configuration import BASE, entry
from tests.unit.test_llm import Proxy, models, proxy

__all__ = ["models", "proxy"]


def results(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    """An answer in Cohere's form."""
    return {"results": [{"index": index, "relevance_score": score} for index, score in pairs]}


def test_relevances_come_in_the_order_of_the_documents(proxy: Proxy, models: LiteLLM) -> None:
    """Providers answer best first; what was asked decides the order, whatever they send beside it."""
    answer = results((2, 0.9), (0, 0.5), (1, -3))
    proxy.json(answer | {"meta": {"tokens": {"input_tokens": 17}, "billed_units": {"search_units": 1}}})
    found = models.rerank("q", ["a", "b", "c"], model="cohere/rerank-v3.5")
    assert (found.relevances, found.tokens) == ([0.5, -3.0, 0.9], 17)
    assert proxy.headers[0][""] == "/rerank"
    assert proxy.bodies[0] == {
        "model": "cohere/rerank-v3.5",
        "query": "q",
        "documents": ["a", "b", "c"],
        "return_documents": False,
    }


@pytest.mark.parametrize(
    "answer",
    [
        results((0, 0.1)),
        results((0, 0.1), (1, 0.2), (2, 0.3)),
        results((0, 0.1), (0, 0.2)),
        results((0, 0.1), (2, 0.2)),
        results((0, 0.1), (-1, 0.2)),
        results((0, 0.1), (1, math.nan)),
        results((0, 0.1), (1, math.inf)),
        results((0, 0.1), (1, None)),
        results((0, 0.1), (1, "0.2")),
        results((0, 0.1), (1, True)),
        results((0, 0.1), ("1", 0.2)),
        {"results": None},
        {"results": {"0": 1}},
        {},
        [],
        None,
        "ok",
    ],
    ids=str,
)
def test_a_ranking_that_would_drop_or_invent_passages_is_refused(answer: object) -> None:
    """Short, foreign or double indexes, and relevances that are no finite numbers: typed, and the tokens are kept."""
    with pytest.raises(UnusableRanking) as caught:
        reranked(answer, 2)
    assert caught.value.reason == "wrong-ranking"


def test_a_refused_ranking_is_paid_all_the_same() -> None:
    """What the provider counted travels with the error."""
    with pytest.raises(UnusableRanking) as caught:
        reranked(results((0, 0.1)) | {"meta": {"billed_units": {"total_tokens": 40}}}, 2)
    assert caught.value.tokens == 40


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["index", "relevance_score"]), inner),
    max_leaves=10,
)


@given(_JSON)
def test_any_json_is_a_ranking_or_a_refusal(rows: object) -> None:
    """Nothing a provider sends is an accident."""
    try:
        found = reranked({"results": rows}, 2)
    except UnusableRanking:
        return
    assert len(found.relevances) == 2
    assert all(map(math.isfinite, found.relevances))


def test_a_provider_that_asks_for_time_or_breaks_is_typed(proxy: Proxy, models: LiteLLM) -> None:
    """429 is Postponed, a broken proxy or half an answer TransientError: as for every model."""
    proxy.raw(b"", 429, Retry_After="17")
    with pytest.raises(Postponed):
        models.rerank("q", ["a"], model="m")
    for body, status in ((b"", 500), (b'{"results": [{"ind', 200)):
        proxy.raw(body, status)
        with pytest.raises(TransientError):
            models.rerank("q", ["a"], model="m")


def test_the_document_with_the_answer_is_the_most_relevant() -> None:
    """By its best sentence; order of the documents does not matter, nor what stands beside the sentence."""
    question = "Wie lang ist die Kündigungsfrist in der Probezeit?"
    found = relevances(question, [WEATHER, HANDBOOK, "", "…"], by_letters)
    assert found[1] == max(found)
    assert found[1] > 0.1 > found[0]
    assert found[2:] == [0.0, 0.0]
    assert relevances(question, [HANDBOOK, WEATHER], by_letters)[0] == pytest.approx(found[1], abs=0.02)


@given(st.text(max_size=200), st.lists(st.text(max_size=300), min_size=1, max_size=4))
def test_any_text_has_a_relevance_between_nothing_and_certain(question: str, documents: list[str]) -> None:
    """One number a document, 0 to 1, for any characters."""
    found = relevances(question, documents, by_letters)
    assert len(found) == len(documents)
    assert all(0 <= relevance <= 1 for relevance in found)


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"query": "q"},
        {"query": "", "documents": ["a"]},
        {"query": "q", "documents": []},
        {"query": "q", "documents": "a"},
        {"query": "q", "documents": [1]},
        {"query": "q", "documents": ["a"] * (MAX_DOCUMENTS + 1)},
        {"query": "q", "documents": ["a" * 4_000_001]},
        {"query": "q", "documents": ["a"], "top_n": 0},
        {"query": "q", "documents": ["a"], "top_n": "1"},
    ],
    ids=lambda body: json.dumps(body)[:40],
)
def test_a_request_that_cannot_be_judged_is_refused(body: object) -> None:
    """No question, no documents, too many, too long."""
    with pytest.raises(BadRequest):
        read_request(body)


def test_documents_may_be_texts_or_objects_with_a_text() -> None:
    """As Cohere's clients send them."""
    assert read_request({"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1}) == ("q", ["a", "b"], 1)


def test_the_bundled_model_is_served_by_the_proxy_itself() -> None:
    """At its own address, with its own key; a service that listens everywhere reaches itself at loopback."""
    bundled = entry(proxy_config(BASE, {}, own_address("0.0.0.0", 8080)), "sentences")
    assert bundled == {
        "model": "hosted_vllm/sentences",
        "api_base": "http://127.0.0.1:8080/noesis/rerank",
        "api_key": "os.environ/LITELLM_MASTER_KEY",
    }
    assert own_address("::", 80) == "http://[::1]:80"
    assert own_address("127.0.0.1", 4000) == "http://127.0.0.1:4000"


def test_another_reranker_is_one_setting() -> None:
    """RERANK_MODEL with the provider's own key; at a server of its own that key is not sent."""
    assert entry(proxy_config(BASE, {"RERANK_MODEL": "cohere/rerank-v3.5"}), "cohere/rerank-v3.5") == {
        "model": "cohere/rerank-v3.5"
    }
    own = {"RERANK_MODEL": "hosted_vllm/bge", "RERANK_API_BASE": "http://r"}
    assert entry(proxy_config(BASE, own), "hosted_vllm/bge")["api_key"] == "none"
    keyed = proxy_config(BASE, own | {"RERANK_API_KEY": "k"})
    assert entry(keyed, "hosted_vllm/bge")["api_key"] == "os.environ/RERANK_API_KEY"
    names = [one["model_name"] for one in proxy_config(BASE, {"RERANK_MODEL": "sentences"})["model_list"]]
    assert names.count("sentences") == 1
