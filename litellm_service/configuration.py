"""What the proxy is started with, computed from the environment. Pure: no I/O, no litellm."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

# Compromised releases (March and October 2026).
REFUSED_VERSIONS = frozenset({"1.82.7", "1.82.8", "1.107.0"})
MIN_KEY_CHARS = 16
# An OpenAI-compatible server without keys still gets an Authorization header from the client library.
_NO_KEY = "none"
RERANKER = "sentences"
LOCAL = "http://127.0.0.1:4000"

# Settings of the process that LiteLLM reads when it is imported.
_FIXED = {
    # No look-ups at start: prices, headers and news come from the package.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    # Anything else would read a .env file of the working directory.
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "JSON_LOGS": "true",
    "LITELLM_DONT_SHOW_FEEDBACK_BOX": "true",
    # Retries are the caller's. The client library behind embeddings would sleep through a Retry-After twice, and
    # LiteLLM takes max_retries 0 in the configuration for "not set" (llms/openai/openai.py, embedding).
    "DEFAULT_MAX_RETRIES": "0",
    # See vectors.UseV3.
    "OPENBLAS_NUM_THREADS": "1",
}
# They would make LiteLLM print requests (DEBUG), start several processes, or adopt the application's database.
_REMOVED = ("DEBUG", "DETAILED_DEBUG", "NUM_WORKERS", "DATABASE_URL", "CONFIG_FILE_PATH", "WORKER_CONFIG")


class StartRefused(Exception):
    """The service does not start; the message says what to change."""


def check_version(version: str) -> None:
    """Raise StartRefused for a release of litellm that is known to be compromised."""
    if version in REFUSED_VERSIONS:
        raise StartRefused(
            f"litellm {version} is a compromised release: rebuild the environment from litellm_service/requirements.txt"
        )


def process_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for the proxy process; StartRefused without a usable master key.

    LITELLM_DATABASE_URL is LiteLLM's own database (virtual keys); the application's DATABASE_URL is not passed on.
    """
    key = environment.get("LITELLM_MASTER_KEY", "")
    if len(key) < MIN_KEY_CHARS or not key.isascii() or not key.isprintable():
        raise StartRefused(f"set LITELLM_MASTER_KEY to at least {MIN_KEY_CHARS} printable ASCII characters")
    result = {name: value for name, value in environment.items() if name not in _REMOVED} | _FIXED
    if database := environment.get("LITELLM_DATABASE_URL"):
        result["DATABASE_URL"] = database
    return result


def own_address(host: str, port: int) -> str:
    """Where this process reaches itself: a service that listens everywhere is reached at loopback."""
    reached = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 # compared, not bound
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def proxy_config(base: Mapping[str, Any], environment: Mapping[str, str], address: str = LOCAL) -> dict[str, Any]:
    """`base` (config.yaml) with the models of CHAT_MODEL, EMBEDDINGS_MODEL, RERANK_MODEL and the key check added.

    `address` is the proxy's own: the bundled re-ranker is served there (see `reranking`).
    Keys stay references to the environment, so that the result may be written to disk.
    """
    config: dict[str, Any] = copy.deepcopy(dict(base))
    known = {entry["model_name"] for entry in config["model_list"]}
    config["model_list"].append(_bundled_reranker(address))
    known.add(RERANKER)
    entries = [_chat_entry(environment), _embeddings_entry(environment), _rerank_entry(environment)]
    for entry in [*entries, *_more_embeddings(environment)]:
        if entry and entry["model_name"] not in known:
            config["model_list"].append(entry)
            known.add(entry["model_name"])
    if "LITELLM_DATABASE_URL" not in environment:
        config["general_settings"]["custom_auth"] = "litellm_service.auth.require_key"
    return config


def _bundled_reranker(address: str) -> dict[str, Any]:
    """The bundled re-ranker, behind the client of vLLM's rerank endpoint."""
    return {
        "model_name": RERANKER,
        "litellm_params": {
            "model": f"hosted_vllm/{RERANKER}",
            "api_base": f"{address}/noesis/rerank",
            "api_key": "os.environ/LITELLM_MASTER_KEY",
        },
        "model_info": {"mode": "rerank", "input_cost_per_token": 0, "output_cost_per_token": 0},
    }


def _rerank_entry(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """The model of RERANK_MODEL, at RERANK_API_BASE when it is set (with RERANK_API_KEY or none), else where the
    provider is, with the provider's own key (COHERE_API_KEY, JINA_AI_API_KEY …).
    """
    name = environment.get("RERANK_MODEL", "")
    if not name:
        return None
    parameters: dict[str, Any] = {"model": name}
    if base := environment.get("RERANK_API_BASE"):
        parameters["api_base"] = base
        parameters["api_key"] = "os.environ/RERANK_API_KEY" if environment.get("RERANK_API_KEY") else _NO_KEY
    return {"model_name": name, "litellm_params": parameters, "model_info": {"mode": "rerank"}}


def _chat_entry(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """The model of CHAT_MODEL; key and address are the provider's own variables (OPENAI_API_KEY, OLLAMA_API_BASE …)."""
    name = environment.get("CHAT_MODEL", "")
    if not name:
        return None
    return {"model_name": name, "litellm_params": _at_provider(name, environment), "model_info": {"mode": "chat"}}


def _embeddings_entry(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """The model of EMBEDDINGS_MODEL, at EMBEDDINGS_API_BASE when it is set, else where the provider is.

    The provider's key is not sent to another address: that one gets EMBEDDINGS_API_KEY or none.
    """
    name = environment.get("EMBEDDINGS_MODEL", "")
    if not name:
        return None
    parameters = _at_provider(name, environment)
    if base := environment.get("EMBEDDINGS_API_BASE"):
        parameters["api_base"] = base
        parameters["api_key"] = "os.environ/EMBEDDINGS_API_KEY" if environment.get("EMBEDDINGS_API_KEY") else _NO_KEY
    info: dict[str, Any] = {"mode": "embedding"}
    if dimensions := environment.get("EMBEDDINGS_DIM"):
        info["output_vector_size"] = int(dimensions)
    return {"model_name": name, "litellm_params": parameters, "model_info": info}


def _more_embeddings(environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """The models of MORE_EMBEDDINGS_MODELS (by commas), each where its provider is: a campaign goes to one of them."""
    names = [name.strip() for name in environment.get("MORE_EMBEDDINGS_MODELS", "").split(",")]
    return [
        {
            "model_name": name,
            "litellm_params": _at_provider(name, environment),
            "model_info": {"mode": "embedding"},
        }
        for name in names
        if name
    ]


def _at_provider(name: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """A model where its provider's own variables say; a server of one's own that speaks OpenAI's format has no key."""
    base = environment.get("OPENAI_API_BASE") or environment.get("OPENAI_BASE_URL")
    if name.startswith("openai/") and base and not environment.get("OPENAI_API_KEY"):
        return {"model": name, "api_key": _NO_KEY}
    return {"model": name}
