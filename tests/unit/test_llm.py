"""Models over the wire: a real HTTP server on loopback misbehaves in every way providers do."""

from __future__ import annotations

import base64
import json
import math
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared import llm, tracing
from shared.errors import PermanentError, Postponed, TooSlow, TransientError
from shared.llm import WAIT_DEFAULT, WAIT_LONGEST, ChatReply, LiteLLM, read_vectors, retry_after
from shared.settings import Settings

KEY = "sk-proxy-key-of-a-test"


class Proxy:
    """A model proxy whose next answer is a function of the handler; it keeps what was asked of it."""

    def __init__(self) -> None:
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda handler: None
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.released = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                proxy.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                proxy.headers.append({key.lower(): value for key, value in self.headers.items()} | {"": self.path})
                proxy.answer(self)

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def json(self, answer: object, status: int = 200, **headers: str) -> None:
        """Answer with JSON from now on."""
        self.raw(json.dumps(answer).encode(), status, **headers)

    def raw(self, body: bytes, status: int = 200, **headers: str) -> None:
        """Answer with these bytes from now on."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                handler.send_header(name.replace("_", "-"), value)
            handler.end_headers()
            handler.wfile.write(body)

        self.answer = answer

    def events(self, *events: object) -> None:
        """Answer with server-sent events from now on; text goes out as it is."""
        lines = [event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n" for event in events]
        self.raw("".join(lines).encode())


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy on a free port."""
    made = Proxy()
    yield made
    made.close()


def _models(url: str, **changed: Any) -> LiteLLM:
    values: dict[str, Any] = {
        "database_url": "postgresql+pg8000://nobody@127.0.0.1/none",
        "litellm_url": url,
        "litellm_api_key": KEY,
        "chat_model": "openai/test",
        "max_tokens": 77,
    }
    return LiteLLM(Settings(**values | changed))


@pytest.fixture
def models(proxy: Proxy) -> Iterator[LiteLLM]:
    """Models behind the proxy."""
    made = _models(proxy.url)
    yield made
    made._http.close()


def _embed(models: LiteLLM, *texts: str, dimension: int = 2) -> list[list[float]]:
    return models.embed(texts, model="use-v3", dimension=dimension, input_type="passage")


def _vectors(*vectors: object) -> dict[str, Any]:
    return {"data": [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]}


def _chat(models: LiteLLM) -> list[str | ChatReply]:
    return list(models.chat([{"role": "user", "content": "Wie viele Tage?"}]))


def _chunk(content: str | None = None, finish: str | None = None) -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "delta": {} if content is None else {"content": content}, "finish_reason": finish}]
    }


STOP = _chunk(finish="stop")
USAGE = {"choices": [], "usage": {"prompt_tokens": 120, "completion_tokens": 7, "total_tokens": 127}}
DONE = "data: [DONE]\n\n"


def test_every_text_gets_its_vector(proxy: Proxy, models: LiteLLM) -> None:
    """One request carries the texts, their purpose, the key and the trace; the vectors come back in order."""
    proxy.json(_vectors([1.0, 0.5], [0.0, -1]))
    with tracing.bound(traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01"):
        assert _embed(models, "eins", "zwei") == [[1.0, 0.5], [0.0, -1.0]]
    assert proxy.bodies == [
        {"model": "use-v3", "input": ["eins", "zwei"], "encoding_format": "base64", "input_type": "passage"}
    ]
    assert proxy.headers[0][""] == "/v1/embeddings"
    assert proxy.headers[0]["authorization"] == f"Bearer {KEY}"
    assert proxy.headers[0]["traceparent"].startswith("00-1111")


def test_vectors_are_put_in_order_by_index(proxy: Proxy, models: LiteLLM) -> None:
    """A provider may answer in any order; a text never gets its neighbour's vector."""
    proxy.json({"data": [{"index": 1, "embedding": [0, 2]}, {"index": 0, "embedding": [1, 0]}]})
    assert _embed(models, "eins", "zwei") == [[1.0, 0.0], [0.0, 2.0]]


def test_vectors_in_base64_are_the_same_numbers(proxy: Proxy, models: LiteLLM) -> None:
    """Little-endian float32, as OpenAI sends them; both forms may come in one answer."""
    packed = base64.b64encode(struct.pack("<2f", 1.5, -(2.0**-100))).decode()
    proxy.json(_vectors(packed, [0, 2]))
    assert _embed(models, "eins", "zwei") == [[1.5, -(2.0**-100)], [0.0, 2.0]]


@pytest.mark.parametrize(
    "answer",
    [
        _vectors([1, 0]),
        _vectors([1, 0], [0, 1], [1, 1]),
        {"data": [{"index": 0, "embedding": [1, 0]}, {"index": 0, "embedding": [0, 1]}]},
        {"data": [{"index": 1, "embedding": [1, 0]}, {"index": 2, "embedding": [0, 1]}]},
        {"data": [{"index": "0", "embedding": [1, 0]}, {"index": "1", "embedding": [0, 1]}]},
        _vectors([1, 0], [0, 1, 0]),
        _vectors([1, 0], []),
        _vectors([1, 0], [float("nan"), 1]),
        _vectors([1, 0], [float("inf"), 1]),
        _vectors([1, 0], ["NaN", 1]),
        _vectors([1, 0], [10**400, 1]),
        _vectors([1, 0], [0, 0]),
        _vectors([1, 0], None),
        _vectors([1, 0], "AAAA"),
        _vectors([1, 0], "not base64"),
        _vectors([1, 0], base64.b64encode(struct.pack("<2f", math.nan, 1)).decode()),
        _vectors([1, 0], base64.b64encode(struct.pack("<2f", math.inf, 1)).decode()),
        _vectors([1, 0], base64.b64encode(struct.pack("<2f", 0, 0)).decode()),
        _vectors([1, 0], base64.b64encode(struct.pack("<3f", 1, 0, 0)).decode()),
        _vectors([1, 0], base64.b64encode(struct.pack("<2f", 1, 0)).decode()[:-1]),
        _vectors([1, 0], {"0": 1, "1": 0}),
        {"data": [[1, 0], [0, 1]]},
        {"data": None},
        {"data": {}},
        {},
        [],
        None,
        "ok",
    ],
)
def test_vectors_that_would_spoil_the_index_are_refused(proxy: Proxy, models: LiteLLM, answer: object) -> None:
    """Short batches, shifted indexes, other dimensions, NaN, infinity and zeros never reach the database."""
    proxy.json(answer)
    with pytest.raises(PermanentError) as caught:
        _embed(models, "eins", "zwei")
    assert caught.value.reason == "wrong-vectors"
    assert "EMBEDDINGS_DIM" in caught.value.next_action


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["data", "index", "embedding"]), inner, max_size=3)
        ),
        max_leaves=10,
    )
)
def test_any_json_is_good_vectors_or_a_refusal(answer: object) -> None:
    """No shape of answer makes the reader stumble, or passes without being what was asked for."""
    try:
        vectors = read_vectors(answer, 1, 2)
    except PermanentError as error:
        reason = error.reason
    else:
        reason = "wrong-vectors" if [len(vector) for vector in vectors] == [2] else f"accepted {vectors}"
    assert reason == "wrong-vectors"


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_what_the_model_refuses_is_permanent(proxy: Proxy, models: LiteLLM, status: int) -> None:
    """The same text would be refused again: the document fails, and the provider's words stay out of it."""
    proxy.json({"error": {"message": "your text 'geheim' is bad"}}, status)
    for call in (lambda: _embed(models, "geheim"), lambda: _chat(models)):
        with pytest.raises(PermanentError) as caught:
            call()
        assert caught.value.reason == "model-refused"
        assert "geheim" not in caught.value.message


@pytest.mark.parametrize("status", [401, 403, 500, 502, 504, 301, 204])
def test_a_broken_proxy_is_everyones_trouble(proxy: Proxy, models: LiteLLM, status: int) -> None:
    """A wrong key or a crash is ours to mend: no document fails for it, it is tried again."""
    proxy.raw(b"", status, Location="/elsewhere")
    for call in (lambda: _embed(models, "x"), lambda: _chat(models)):
        with pytest.raises(TransientError, match=str(status)):
            call()


@pytest.mark.parametrize("status", [429, 503, 529])
def test_a_provider_that_asks_for_time_gets_it(proxy: Proxy, models: LiteLLM, status: int) -> None:
    """Rate limits postpone this one piece of work to the moment the provider names."""
    proxy.raw(b"{}", status, Retry_After="120")
    for call in (lambda: _embed(models, "x"), lambda: _chat(models)):
        before = datetime.now(UTC)
        with pytest.raises(Postponed) as caught:
            call()
        assert before + timedelta(seconds=120) <= caught.value.until <= datetime.now(UTC) + timedelta(seconds=120)


def _wait(value: str | None) -> timedelta:
    return retry_after(httpx.Response(429, headers={} if value is None else {"Retry-After": value}))


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("7", timedelta(seconds=7)),
        ("1.5", timedelta(seconds=1.5)),
        (" 7 ", timedelta(seconds=7)),
        ("0", timedelta(seconds=1)),
        ("-5", timedelta(seconds=1)),
        ("86400", WAIT_LONGEST),
        ("1e300", WAIT_DEFAULT),
        ("inf", WAIT_DEFAULT),
        ("nan", WAIT_DEFAULT),
        ("soon", WAIT_DEFAULT),
        ("", WAIT_DEFAULT),
        (None, WAIT_DEFAULT),
        ("Wed, 21 Oct 2015 07:28:00 GMT", timedelta(seconds=1)),
        ("Fri, 31 Dec 9999 23:59:59 GMT", WAIT_LONGEST),
        ("Wed, 99 Oct 2015 07:28:00 GMT", WAIT_DEFAULT),
    ],
)
def test_retry_after_is_understood_and_bounded(value: str | None, wait: timedelta) -> None:
    """Seconds or a date (RFC 9110, 10.2.3); nonsense and absence wait 30 s; never less than 1 s, never over 1 h."""
    assert _wait(value) == wait


def test_retry_after_as_a_date_is_the_time_until_then() -> None:
    """Dates have whole seconds."""
    wait = _wait(format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True))
    assert timedelta(seconds=87) < wait <= timedelta(seconds=90)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
@example("Mon, 01 Jan 0001 00:00:00 +2359")
@example("Mon, 01 Jan 2026 00:00:00 +99999999999999999999")
@example("1" * 4999)
def test_any_retry_after_is_a_bounded_wait(value: str) -> None:
    """A header is somebody else's text: whatever it is, we wait between a second and an hour."""
    assert timedelta(seconds=1) <= _wait(value) <= WAIT_LONGEST


def test_a_refused_connection_is_transient() -> None:
    """The proxy restarts: everything waits, nothing fails."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        models = _models(f"http://127.0.0.1:{closed.getsockname()[1]}")
    with pytest.raises(TransientError, match="ConnectError"):
        _embed(models, "x")
    with pytest.raises(TransientError, match="ConnectError"):
        _chat(models)


def test_a_proxy_that_hangs_is_given_up(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence ends at the timeout, before the answer's headers and in the middle of it."""
    monkeypatch.setattr(llm, "TIMEOUT", httpx.Timeout(60, read=0.2))
    models = _models(proxy.url)

    def silent(handler: BaseHTTPRequestHandler) -> None:
        proxy.released.wait(20)

    proxy.answer = silent
    with pytest.raises(TooSlow, match="ReadTimeout"):
        _embed(models, "x")

    def silent_in_the_middle(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(f"data: {json.dumps(_chunk('Es '))}\n\n".encode())
        proxy.released.wait(20)

    proxy.answer = silent_in_the_middle
    models._http.timeout = httpx.Timeout(60, read=2)  # the first word comes in time on a busy machine too
    stream = models.chat([{"role": "user", "content": "x"}])
    assert next(stream) == "Es "
    with pytest.raises(TransientError, match="ReadTimeout"):
        next(stream)
    models._http.close()


@pytest.mark.parametrize("status", [408, 504])
def test_a_provider_the_proxy_gave_up_on_was_too_slow(proxy: Proxy, models: LiteLLM, status: int) -> None:
    """Its own patience counts like ours: less may be asked."""
    proxy.json({"error": {"message": "timeout"}}, status)
    with pytest.raises(TooSlow):
        _embed(models, "x")


def test_an_answer_that_never_ends_is_given_up(proxy: Proxy, models: LiteLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dripping tokens for ever is a failure too: the service's own timeout would kill us without a word."""
    monkeypatch.setattr(llm, "CHAT_SECONDS", -1)
    proxy.events(_chunk("Es "), STOP, DONE)
    with pytest.raises(TransientError, match="longer than"):
        _chat(models)


@pytest.mark.parametrize("body", [b'{"data": [{"index": 0, "embed', b"<html>502</html>", b"", b"\xff", b"[" * 90_000])
def test_a_truncated_answer_is_transient(proxy: Proxy, models: LiteLLM, body: bytes) -> None:
    """Half a JSON document says nothing about the text that was sent."""
    proxy.raw(body)
    with pytest.raises(TransientError):
        _embed(models, "x")


def test_an_answer_shorter_than_promised_is_transient(proxy: Proxy, models: LiteLLM) -> None:
    """The connection broke: Content-Length says more than what came."""
    whole = json.dumps(_vectors([1, 0])).encode()
    proxy.raw(whole, Content_Length=str(len(whole) + 10))
    with pytest.raises(TransientError, match="RemoteProtocolError"):
        _embed(models, "x")


def test_an_answer_with_a_broken_encoding_is_transient(proxy: Proxy, models: LiteLLM) -> None:
    """A proxy in between that mangles compression is a transport failure."""
    proxy.raw(b"not gzip", Content_Encoding="gzip")
    with pytest.raises(TransientError, match="DecodingError"):
        _embed(models, "x")


def test_an_answer_streams_and_ends_with_what_it_cost(proxy: Proxy, models: LiteLLM) -> None:
    """Pieces as they come, then the whole with the tokens the provider counted."""
    proxy.events(": heartbeat\n\n", _chunk("Es sind "), _chunk(""), _chunk("30 Tage [1]."), STOP, USAGE, DONE)
    assert _chat(models) == ["Es sind ", "30 Tage [1].", ChatReply("Es sind 30 Tage [1].", "openai/test", 120, 7)]
    body = proxy.bodies[0]
    assert proxy.headers[0][""] == "/v1/chat/completions"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("openai/test", 77, 0)
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}


def test_the_first_piece_arrives_before_the_answer_is_complete(proxy: Proxy, models: LiteLLM) -> None:
    """Streaming is real: the piece is out while the model still works."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(f"data: {json.dumps(_chunk('Es '))}\n\n".encode())
        assert proxy.released.wait(20)
        handler.wfile.write(f"data: {json.dumps(_chunk('sind 30.', 'stop'))}\n\n".encode())

    proxy.answer = answer
    stream = models.chat([{"role": "user", "content": "x"}])
    assert next(stream) == "Es "
    proxy.released.set()
    assert list(stream) == ["sind 30.", ChatReply("Es sind 30.", "openai/test", 0, 0)]


@pytest.mark.parametrize("usage", [None, {}, [], "many", {"prompt_tokens": None, "completion_tokens": "7"}])
def test_a_provider_that_does_not_count_costs_nothing(proxy: Proxy, models: LiteLLM, usage: object) -> None:
    """Missing usage is zero tokens, not a failed answer."""
    proxy.events(_chunk("Ja."), STOP, {"choices": [], "usage": usage}, DONE)
    assert _chat(models)[-1] == ChatReply("Ja.", "openai/test", 0, 0)


@pytest.mark.parametrize(
    "events",
    [
        [_chunk("Es sind ")],
        [_chunk("Es sind "), DONE],
        [_chunk("Es sind "), 'data: {"choices": [{"del'],
        [_chunk("Es sind "), {"error": {"message": "overloaded", "code": 500}}],
        [_chunk("Es sind "), 'data: {"error": "boom"}\n\n', STOP, DONE],
        ["data: 17\n\n"],
        ["data: [1]\n\n"],
        [{"choices": [None]}],
        [{"choices": 5}],
        [{"choices": [{"delta": "x"}]}],
        [{"choices": [{"delta": {"content": 5}}]}],
        [],
    ],
    ids=[
        "cut",
        "no-finish",
        "half-event",
        "error",
        "error-then-end",
        "number",
        "list",
        "null-choice",
        "number-choices",
        "text-delta",
        "number-content",
        "empty",
    ],
)
def test_a_cut_or_failed_stream_is_transient(proxy: Proxy, models: LiteLLM, events: list[object]) -> None:
    """Half an answer is never stored as an answer: the run is resumed and asks again."""
    proxy.events(*events)
    with pytest.raises(TransientError):
        _chat(models)


def test_a_connection_cut_in_the_stream_is_transient(proxy: Proxy, models: LiteLLM) -> None:
    """The proxy is killed in the middle of a chunked answer."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        event = f"data: {json.dumps(_chunk('Es '))}\n\n".encode()
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
        handler.close_connection = True

    proxy.answer = answer
    stream = models.chat([{"role": "user", "content": "x"}])
    assert next(stream) == "Es "
    with pytest.raises(TransientError, match="RemoteProtocolError"):
        list(stream)


def test_abandoning_a_stream_gives_its_connection_back(proxy: Proxy, models: LiteLLM) -> None:
    """A superseded run stops reading; the next call does not starve for it."""
    for _ in range(25):  # more than the pool holds
        proxy.events(_chunk("Es "), STOP, DONE)
        stream = models.chat([{"role": "user", "content": "x"}])
        assert next(stream) == "Es "
        stream.close()  # type: ignore[attr-defined]
    proxy.json(_vectors([1, 0]))
    assert _embed(models, "x") == [[1.0, 0.0]]


def test_the_proxy_is_told_where_another_embedding_server_is(proxy: Proxy) -> None:
    """EMBEDDINGS_API_BASE travels with the request."""
    models = _models(proxy.url, embeddings_model="use-v3", embeddings_api_base="http://127.0.0.1:9")
    proxy.json(_vectors([1, 0]))
    _embed(models, "x")
    assert proxy.bodies[0]["api_base"] == "http://127.0.0.1:9"
    models._http.close()
