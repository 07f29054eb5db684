"""The bundled re-ranker `sentences`: how likely is it that a sentence of a document answers the question.

LiteLLM's CustomLLM has no rerank (1.106.2: completion, embedding, images; `rerank` refuses unknown providers). So the
model is served by this process itself, in the form of vLLM's rerank endpoint, and the proxy is pointed at its own
address: callers use the proxy's /rerank like for any other provider, with its keys, limits and logs.
"""

from __future__ import annotations

import asyncio
import hmac
import os
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from litellm_service import vectors
from litellm_service.provider import sentence_vectors
from litellm_service.relevance import BadRequest, read_request, relevances

MODEL = "sentences"
PATH = "/noesis/rerank"


def route() -> Route:
    """The address at which the proxy reaches the bundled re-ranker."""
    return Route(PATH, Reranker().answer, methods=["POST"])


class Reranker:
    """Answers rerank requests; the work is done by threads of its own, because it waits for vectors."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(vectors.processors(), thread_name_prefix=MODEL)

    async def answer(self, request: Request) -> JSONResponse:
        """One request in vLLM's form: `query`, `documents`, `top_n`; only for the holder of the master key."""
        expected = f"Bearer {os.environ.get('LITELLM_MASTER_KEY', '')}"
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode()):
            return JSONResponse({"error": "this address is the proxy's own: use /rerank"}, 401)
        try:
            question, documents, most = read_request(await request.json())
        except (BadRequest, ValueError) as refused:
            return JSONResponse({"error": str(refused)}, 400)
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, relevances, question, documents, sentence_vectors())
        order = sorted(range(len(found)), key=lambda index: -found[index])[:most]
        return JSONResponse(
            {
                "model": MODEL,
                "results": [{"index": index, "relevance_score": found[index]} for index in order],
                "usage": {"total_tokens": vectors.estimated_tokens([question, *documents])},
            }
        )
