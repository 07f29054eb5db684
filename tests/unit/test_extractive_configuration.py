"""How the model service is started: two settings switch the models, and what must not start does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from litellm_service.configuration import StartRefused, check_version, process_environment, proxy_config
from litellm_service.input_types import for_provider

KEY = "sk-0123456789abcdef"
BASE = yaml.safe_load((Path(__file__).parents[2] / "litellm_service/config.yaml").read_text(encoding="utf-8"))


def entry(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The one entry of that model name."""
    (found,) = [one for one in config["model_list"] if one["model_name"] == name]
    parameters: dict[str, Any] = found["litellm_params"]
    return parameters


@pytest.mark.parametrize("version", ["1.82.7", "1.82.8", "1.107.0"])
def test_a_compromised_release_does_not_start(version: str) -> None:
    """The three known releases are refused, the pinned one is not."""
    with pytest.raises(StartRefused, match="compromised"):
        check_version(version)
    check_version("1.106.2")


@pytest.mark.parametrize("key", [None, "", "short", "sk-with-a-newline-\n-in-it", "sk-mit-einem-ü-darin"])
def test_it_does_not_start_without_a_usable_key(key: str | None) -> None:
    """A missing, short or unprintable key is refused before anything listens."""
    with pytest.raises(StartRefused, match="LITELLM_MASTER_KEY"):
        process_environment({} if key is None else {"LITELLM_MASTER_KEY": key})


def test_the_process_reads_no_foreign_settings() -> None:
    """Debug output of requests and the application's database stay out; LiteLLM's own database goes in."""
    given = {
        "LITELLM_MASTER_KEY": KEY,
        "DEBUG": "1",
        "DATABASE_URL": "postgresql://app",
        "NUM_WORKERS": "9",
        "HOME": "/h",
    }
    result = process_environment(given)
    assert not {"DEBUG", "DATABASE_URL", "NUM_WORKERS"} & set(result)
    assert result["HOME"] == "/h"
    assert result["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
    assert process_environment(given | {"LITELLM_DATABASE_URL": "postgresql://l"})["DATABASE_URL"] == "postgresql://l"


def test_two_settings_add_the_models() -> None:
    """CHAT_MODEL and EMBEDDINGS_MODEL become callable under their own names, beside the bundled ones."""
    config = proxy_config(BASE, {"CHAT_MODEL": "ollama/llama3", "EMBEDDINGS_MODEL": "openai/text-embedding-3-small"})
    assert entry(config, "ollama/llama3") == {"model": "ollama/llama3"}
    assert entry(config, "openai/text-embedding-3-small") == {"model": "openai/text-embedding-3-small"}
    assert entry(config, "use-v3") == {"model": "noesis/use-v3"}


def test_a_campaign_finds_further_models_at_their_providers() -> None:
    """MORE_EMBEDDINGS_MODELS: each where its provider is, none at the address of EMBEDDINGS_MODEL, none twice."""
    settings = {
        "EMBEDDINGS_MODEL": "openai/own",
        "EMBEDDINGS_API_BASE": "http://own:8080/v1",
        "MORE_EMBEDDINGS_MODELS": "voyage/voyage-3, openai/text-embedding-3-small,use-v3,openai/own,",
    }
    config = proxy_config(BASE, settings)
    assert entry(config, "voyage/voyage-3") == {"model": "voyage/voyage-3"}
    assert entry(config, "openai/text-embedding-3-small") == {"model": "openai/text-embedding-3-small"}
    assert entry(config, "openai/own")["api_base"] == "http://own:8080/v1"
    names = [known["model_name"] for known in config["model_list"]]
    assert len(names) == len(set(names))


def test_bundled_names_are_not_added_twice() -> None:
    """The defaults name bundled models; one model for both settings is one entry."""
    bundled = proxy_config(BASE, {})["model_list"]
    assert bundled[:-1] == BASE["model_list"]
    assert bundled[-1]["model_name"] == "sentences"
    defaults = {"CHAT_MODEL": "extractive", "EMBEDDINGS_MODEL": "use-v3", "RERANK_MODEL": "sentences"}
    assert proxy_config(BASE, defaults)["model_list"] == bundled
    both = proxy_config(BASE, {"CHAT_MODEL": "openai/x", "EMBEDDINGS_MODEL": "openai/x"})
    assert len(both["model_list"]) == len(bundled) + 1


def test_no_key_is_written_and_none_goes_to_another_address() -> None:
    """The configuration refers to the environment; a separate embeddings server never gets the chat provider's key."""
    environment = {
        "CHAT_MODEL": "openai/a", "OPENAI_API_KEY": "sk-secret",
        "EMBEDDINGS_MODEL": "openai/b", "EMBEDDINGS_API_BASE": "http://localhost:9/v1",
    }  # fmt: skip
    config = proxy_config(BASE, environment)
    assert "sk-secret" not in yaml.safe_dump(config)
    assert entry(config, "openai/b") == {"model": "openai/b", "api_base": "http://localhost:9/v1", "api_key": "none"}
    own = proxy_config(BASE, environment | {"EMBEDDINGS_API_KEY": "sk-other"})
    assert entry(own, "openai/b")["api_key"] == "os.environ/EMBEDDINGS_API_KEY"


def test_the_key_check_is_ours_without_a_database_and_litellms_with_one() -> None:
    """Without a database LiteLLM answers 500 for a missing key; with one its own check knows virtual keys."""
    assert proxy_config(BASE, {})["general_settings"]["custom_auth"] == "litellm_service.auth.require_key"
    assert "custom_auth" not in proxy_config(BASE, {"LITELLM_DATABASE_URL": "postgresql://l"})["general_settings"]
    assert "custom_auth" not in BASE["general_settings"]


def test_input_type_reaches_who_knows_it_in_their_words() -> None:
    """The bundled models get it as it is, Cohere and Voyage in theirs, everyone else not at all."""
    asked = {"input": ["a"], "input_type": "passage"}
    assert for_provider({"model": "e5-small", **asked})["input_type"] == "passage"
    assert for_provider({"model": "cohere/embed-v4.0", **asked})["input_type"] == "search_document"
    assert for_provider({"model": "voyage/voyage-3", **asked})["input_type"] == "document"
    assert for_provider({"model": "openai/x", **asked}) == {"model": "openai/x", "input": ["a"]}
    ours = {**asked, "encoding_format": "base64"}
    assert for_provider({"model": "use-v3", **ours})["encoding_format"] == "base64"
    assert for_provider({"model": "openai/x", **ours})["encoding_format"] == "float"
    theirs = {"model": "openai/x", "input": ["a"], "encoding_format": "base64"}
    assert for_provider(theirs) == theirs
