"""The model service as it runs: the real proxy in its own environment, and an OpenAI-compatible stand-in behind it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pytest

from local.ports import free_ports
from shared.errors import Postponed
from shared.llm import LiteLLM
from shared.settings import Settings
from tests.integration.litellm_material import (
    CHAT,
    EMBEDDINGS,
    KEY,
    PROVIDER_KEY,
    RERANKER,
    Service,
    StandIn,
    ask,
    embed,
    standing_in,
    streamed,
)
from tests.model_proxy import ROOT, command, running_proxy

SECRET = "Geheimnis-4711"
PASSAGES = """<passages>
<passage n="1" title="Wetter">
Am Montag regnet es im Norden. Der Wind weht schwach aus Südwest.
</passage>
<passage n="2" title="Handbuch">
Vollzeitkräfte haben Anspruch auf 30 Arbeitstage Urlaub im Jahr. Resturlaub verfällt am 31. März des Folgejahres.
</passage>
</passages>
<question>%s</question>"""


@pytest.fixture(scope="module")
def stand_in() -> Iterator[StandIn]:
    """The stand-in on a free port."""
    with standing_in() as served:
        yield served


@pytest.fixture(scope="module")
def service(stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One proxy for the module (it takes more than ten seconds to start), with the two settings on the stand-in."""
    folder = tmp_path_factory.mktemp("litellm")
    settings = {
        "LITELLM_MASTER_KEY": KEY,
        "CHAT_MODEL": CHAT,
        "OPENAI_API_BASE": f"{stand_in.url}/v1",
        "OPENAI_API_KEY": PROVIDER_KEY,
        "EMBEDDINGS_MODEL": EMBEDDINGS,
        "EMBEDDINGS_DIM": "2",
        "EMBEDDINGS_API_BASE": f"{stand_in.url}/embed/v1",
        "RERANK_MODEL": RERANKER,
        "RERANK_API_BASE": f"{stand_in.url}/ranks",
        "DEBUG": "true",
    }
    with (
        running_proxy(settings, folder) as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client,
    ):
        yield Service(client, url, folder / "log")
    # The generated configuration goes with the process.
    assert not list(folder.glob("litellm-service-*"))


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", f"Bearer {KEY}x", "Basic abc", "Bearer schlüssel"])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/chat/completions", "/v1/models", "/key/generate"])
def test_without_the_right_key_the_answer_is_401(service: Service, header: str | None, path: str) -> None:
    """A missing and a wrong key are the same to a stranger, on every route."""
    headers = {b"Authorization": header.encode()} if header else {}
    body = {"model": "use-v3", "input": "a", "messages": [{"role": "user", "content": "a"}]}
    method = "GET" if path == "/v1/models" else "POST"
    assert httpx.request(method, service.url + path, json=body, headers=headers).status_code == 401


def test_the_health_address_needs_no_key(service: Service) -> None:
    """The runner and Cloud Run ask it without one."""
    assert httpx.get(service.url + "/health/liveliness").status_code == 200


def test_a_chat_is_answered_with_a_quote_and_a_citation(service: Service) -> None:
    """The extractive answerer behind the proxy, with usage filled in."""
    reply = ask(service, PASSAGES % "Wann verfällt der Resturlaub?", temperature=0, max_tokens=200, seed=1).json()
    assert reply["choices"][0]["message"]["content"] == "„Resturlaub verfällt am 31. März des Folgejahres.“ [2]"
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["prompt_tokens"] > 50
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + reply["usage"]["completion_tokens"]


def test_a_question_in_the_other_language_finds_the_sentence(service: Service) -> None:
    """English question, German passage: the quote stays German, its frame is English."""
    reply = ask(service, PASSAGES % "How many days of annual leave do full-time employees get?").json()
    quote = '"Vollzeitkräfte haben Anspruch auf 30 Arbeitstage Urlaub im Jahr." [2]'
    assert reply["choices"][0]["message"]["content"].split("\n")[0] == quote


def test_no_evidence_is_said_exactly(service: Service) -> None:
    """A question the passages do not answer."""
    reply = ask(service, PASSAGES % "Wer hat den Film Titanic gedreht?").json()
    assert reply["choices"][0]["message"]["content"] == "NO_EVIDENCE"


def test_a_streamed_chat_comes_in_pieces_and_is_the_same(service: Service) -> None:
    """Several chunks, a stop, and the usage when asked for."""
    content = PASSAGES % "Wann verfällt der Resturlaub?"
    whole = ask(service, content).json()
    events = streamed(ask(service, content, stream=True, stream_options={"include_usage": True}))
    pieces = [e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"]]
    assert len([piece for piece in pieces if piece]) > 1
    assert "".join(pieces) == whole["choices"][0]["message"]["content"]
    assert "stop" in [e["choices"][0].get("finish_reason") for e in events if e["choices"]]
    usage = events[-1]["usage"]
    assert usage["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert usage["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_vectors_are_normalised_in_order_and_always_the_same(service: Service) -> None:
    """512 dimensions, length 1, row i belongs to text i, alone or in a batch, query or passage."""
    texts = [f"Absatz {n} über Urlaub und Kündigung." for n in range(40)] + ["", " ", "kurz", "lang " * 3_000]
    found = embed(service, texts)
    assert found.shape == (44, 512)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    for index in (0, 17, 40, 43):
        assert np.allclose(found[index], embed(service, [texts[index]], input_type="query")[0], atol=1e-6)
    assert np.array_equal(found, embed(service, texts))


def test_a_translation_is_near_and_the_unrelated_far(service: Service) -> None:
    """What the retrieval across languages builds on."""
    german, english, other = embed(
        service, ["Wann wurde das Gesetz erlassen?", "When was the law passed?", "Der Kuchen braucht drei Eier."]
    )
    assert german @ english > 0.75
    assert german @ other < 0.45


def test_e5_has_its_own_dimension_and_tells_queries_from_passages(service: Service) -> None:
    """The second space: 384 dimensions, loaded at its first use; the prefix makes a difference."""
    query = embed(service, ["Wann verfällt Urlaub?"], "e5-small", input_type="query")
    passages = embed(
        service, ["Resturlaub verfällt am 31. März.", "Der Wind weht schwach."], "e5-small", input_type="passage"
    )
    assert query.shape == (1, 384)
    assert np.allclose(np.linalg.norm(passages, axis=1), 1, atol=1e-5)
    assert query[0] @ passages[0] > query[0] @ passages[1]
    same = embed(service, ["Wann verfällt Urlaub?"], "e5-small", input_type="passage")
    assert not np.allclose(query, same, atol=1e-3)


def test_vectors_come_as_base64_when_asked_for(service: Service) -> None:
    """What OpenAI's own client asks for: little-endian float32."""
    body = {"model": "use-v3", "input": ["Urlaub"], "encoding_format": "base64", "dimensions": 512}
    reply = service.client.post("/v1/embeddings", json=body).json()
    given = np.frombuffer(base64.b64decode(reply["data"][0]["embedding"]), dtype="<f4")
    assert np.allclose(given, embed(service, ["Urlaub"])[0], atol=1e-6)
    assert reply["usage"]["prompt_tokens"] == 2


def test_a_plain_request_for_a_bundled_model_takes_no_detour_and_gets_the_same(service: Service) -> None:
    """LiteLLM answers whatever asks for more than vectors, e.g. with a `user`; both answers are the same."""
    body = {"model": "use-v3", "input": ["Urlaub", "Fünf Tage"], "encoding_format": "base64", "input_type": "passage"}
    direct = service.client.post("/v1/embeddings", json=body)
    through = service.client.post("/v1/embeddings", json=body | {"user": "somebody"})
    assert "x-litellm-call-id" not in direct.headers
    assert "x-litellm-call-id" in through.headers
    given, other = direct.json(), through.json()
    assert given["data"] == other["data"]
    assert {name: given["usage"][name] for name in ("prompt_tokens", "total_tokens")} == {
        name: other["usage"][name] for name in ("prompt_tokens", "total_tokens")
    }
    assert (given["object"], given["model"]) == (other["object"], other["model"])


@pytest.mark.parametrize(
    "body",
    [
        {"model": "unknown", "input": ["a"]},
        {"model": "extractive", "input": ["a"]},
        {"model": "use-v3", "input": []},
        {"model": "use-v3", "input": [1, 2]},
        {"model": "use-v3", "input": ["a"] * 513},
        {"model": "use-v3", "input": ["a" * 200_001]},
        {"model": "use-v3", "input": ["a"], "dimensions": 100},
        {"model": "e5-small", "input": ["a"], "input_type": "other"},
    ],
)
def test_a_wrong_embedding_request_is_a_400_with_a_reason(service: Service, body: dict[str, Any]) -> None:
    """OpenAI's shape of an error, and the next request is served."""
    reply = service.client.post("/v1/embeddings", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]
    assert embed(service, ["danach"]).shape == (1, 512)


def test_an_embedding_model_does_not_chat(service: Service) -> None:
    """The wrong kind of model is the caller's error."""
    assert ask(service, "Hallo", "use-v3").status_code == 400


@pytest.mark.parametrize(
    "text", ["a\x00b", "\u200b", "👩‍👩‍👧" * 10, "e\u0301" * 200, "\ufffe", "x" * 2_000, "العربية 中文"]
)
@pytest.mark.parametrize("model", ["use-v3", "e5-small"])
def test_odd_text_has_a_vector(service: Service, model: str, text: str) -> None:
    """Nothing a document can hold stops a batch."""
    found = embed(service, ["davor", text, "danach"], model)
    assert np.isfinite(found).all()
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_a_lone_surrogate_is_refused_or_embedded(service: Service) -> None:
    """JSON can carry half a character; it is a 400 or a vector, never a 500."""
    content = b'{"model": "use-v3", "input": ["\\ud800"]}'
    reply = service.client.post("/v1/embeddings", content=content, headers={"Content-Type": "application/json"})
    assert reply.status_code in (200, 400)


def test_a_question_is_not_held_up_by_a_batch(service: Service) -> None:
    """While 256 long texts are embedded, others get their vectors and the health address answers."""
    batch = ["Ein Absatz über Urlaub, Kündigung und Reisekosten. " * 10] * 256
    done = threading.Event()

    def work() -> None:
        embed(service_of_thread, batch, encoding_format="float")
        done.set()

    with httpx.Client(base_url=service.url, headers=service.client.headers, timeout=120) as client:
        service_of_thread = Service(client, service.url, service.log)
        thread = threading.Thread(target=work)
        thread.start()
        answered = 0
        while not done.is_set() and answered < 5:
            embed(service, ["eine Frage"])
            assert httpx.get(service.url + "/health/liveliness").status_code == 200
            answered += not done.is_set()
        thread.join()
    assert answered == 5


@pytest.fixture(scope="module")
def reranker(service: Service) -> Iterator[LiteLLM]:
    """Our client of this proxy."""
    values: dict[str, Any] = {"database_url": "postgresql+pg8000://u@h/db", "litellm_api_key": KEY}
    models = LiteLLM(Settings(litellm_url=service.url, **values))
    yield models
    models._http.close()


def test_the_bundled_reranker_puts_the_answer_first(service: Service, reranker: LiteLLM) -> None:
    """Through the proxy's own /rerank, with its key: the document that answers, in any place among the others."""
    documents = [
        "# Wetter\nAm Montag regnet es im Norden. Der Wind weht schwach aus Südwest.",
        "# Reisen\nReisekosten werden nach der Rückkehr abgerechnet.",
        "# Urlaub\nVollzeitkräfte haben Anspruch auf 30 Arbeitstage Urlaub im Jahr. Resturlaub verfällt im März.",
    ]
    question = "Wie viele Urlaubstage haben Vollzeitkräfte?"
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        found = reranker.rerank(question, [documents[i] for i in order], model="sentences")
        assert order[found.relevances.index(max(found.relevances))] == 2
        assert max(found.relevances) > 0.5
        assert found.tokens > 20
    reply = service.client.post("/rerank", json={"model": "sentences", "query": question, "documents": documents})
    assert float(reply.headers["x-litellm-response-cost"]) == 0


def test_the_bundled_reranker_is_reached_only_through_the_proxy(service: Service) -> None:
    """Its address without the key, or with another one, is closed."""
    body = {"query": "q", "documents": ["a"]}
    for key in ("", "Bearer sk-other", f"Basic {KEY}"):
        assert httpx.post(f"{service.url}/noesis/rerank", json=body, headers={"Authorization": key}).status_code == 401
    assert httpx.post(f"{service.url}/rerank", json={"model": "sentences"} | body).status_code == 401


def test_another_reranker_is_reached_at_its_own_address(reranker: LiteLLM, stand_in: StandIn) -> None:
    """RERANK_MODEL and RERANK_API_BASE; our keys stay here."""
    stand_in.requests.clear()
    found = reranker.rerank("q", ["a", "b", "c"], model=RERANKER)
    assert (found.relevances, found.tokens) == ([1.0, 0.5, pytest.approx(1 / 3)], 9)
    ((path, key, body),) = stand_in.requests
    assert (path, key, body["documents"]) == ("/ranks/rerank", "Bearer none", ["a", "b", "c"])


def test_two_settings_switch_to_another_provider(service: Service, stand_in: StandIn) -> None:
    """CHAT_MODEL and EMBEDDINGS_MODEL name models of a server that speaks OpenAI's protocol; nothing else changes."""
    stand_in.requests.clear()
    reply = ask(service, "Hi", CHAT).json()
    assert reply["choices"][0]["message"]["content"] == "Hello world"
    assert reply["usage"]["total_tokens"] == 7
    events = streamed(ask(service, "Hi", CHAT, stream=True))
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"]) == "Hello world"
    assert embed(service, ["abc", "d"], EMBEDDINGS, input_type="query").tolist() == [[3.0, 1.0], [1.0, 1.0]]
    paths = [path for path, _, _ in stand_in.requests]
    assert paths == ["/v1/chat/completions", "/v1/chat/completions", "/embed/v1/embeddings"]
    assert {key for path, key, _ in stand_in.requests if "chat" in path} == {f"Bearer {PROVIDER_KEY}"}
    _, key, body = stand_in.requests[-1]
    assert key == "Bearer none"
    assert "input_type" not in body


def test_a_models_own_name_is_listed(service: Service) -> None:
    """What can be called, and nothing else."""
    listed = {one["id"] for one in service.client.get("/v1/models").json()["data"]}
    assert listed == {"use-v3", "e5-small", "extractive", "sentences", CHAT, EMBEDDINGS, RERANKER}


def test_a_providers_failure_arrives_with_its_status_and_once(service: Service, stand_in: StandIn) -> None:
    """429 stays 429, is not tried again here, and does not block the next call."""
    stand_in.requests.clear()
    assert ask(service, f"fail {SECRET}", CHAT).status_code == 429
    assert len(stand_in.requests) == 1
    assert ask(service, "Hi", CHAT).status_code == 200


def test_a_providers_retry_after_reaches_the_caller(service: Service, stand_in: StandIn) -> None:
    """The batch is postponed by exactly that long, and the proxy does not sleep and try again by itself."""
    stand_in.requests.clear()
    values: dict[str, Any] = {"database_url": "postgresql://nobody@127.0.0.1/none", "litellm_api_key": KEY}
    models = LiteLLM(Settings(litellm_url=service.url, **values))
    began = datetime.now(UTC)
    with closing(models._http), pytest.raises(Postponed) as caught:
        models.embed(["wait"], model=EMBEDDINGS, dimension=2, input_type="passage")
    took = datetime.now(UTC) - began
    assert timedelta(seconds=17) <= caught.value.until - began <= timedelta(seconds=17) + took
    assert took < timedelta(seconds=15)
    assert len(stand_in.requests) == 1
    assert embed(service, ["abc"], EMBEDDINGS).tolist() == [[3.0, 1.0]]


def test_neither_keys_nor_content_are_logged(service: Service) -> None:
    """After successes and failures of all kinds: one JSON object a line, without what was said and by which key."""
    ask(service, PASSAGES % SECRET)
    ask(service, f"fail {SECRET}", CHAT)
    service.client.post("/v1/embeddings", json={"model": SECRET, "input": [SECRET]})
    service.client.post("/v1/embeddings", content=f'{{"model": "{SECRET}'.encode())
    httpx.get(service.url + "/v1/models", headers={"Authorization": f"Bearer {SECRET}"})
    log = service.log.read_text(encoding="utf-8")
    assert '"RateLimitError 429"' in log
    for line in log.splitlines():
        json.loads(line)
    for secret in (SECRET, KEY, PROVIDER_KEY, "Resturlaub"):
        assert secret not in log


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"LITELLM_MASTER_KEY": ""}, "LITELLM_MASTER_KEY"),
        ({"LITELLM_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none", "FREE_PORT": "yes"}, "prisma"),
        ({}, "cannot listen on 127.0.0.1"),
    ],
)
def test_a_start_that_cannot_work_ends_at_once_with_one_line(
    service: Service, changed: dict[str, str], reason: str
) -> None:
    """No key, virtual keys without prisma, or a taken port: status 2 and what to change, no traceback."""
    port = free_ports(1)[0] if "FREE_PORT" in changed else int(service.url.rpartition(":")[2])
    environment = os.environ | {"LITELLM_MASTER_KEY": KEY} | changed
    ended = subprocess.run(
        command(port), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    assert reason in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
