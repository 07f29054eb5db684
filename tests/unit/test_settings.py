"""Settings: where they come from, which source wins, and what people read when one is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared import settings as module
from shared.errors import SettingsError
from shared.settings import HARNESS, Settings, home, load_settings

URL = "postgresql+pg8000://app:secret-word@127.0.0.1:1/noesis2"


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty checkout and home, and an environment without a single setting."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name in list(os.environ):
        if name.startswith("NOESIS_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(module, "CHECKOUT", tmp_path)
    monkeypatch.setenv("NOESIS_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path


def _platform(checkout: Path, text: str) -> None:
    (checkout / "home" / "platform.env").write_text(text)


def test_a_missing_setting_says_what_to_do() -> None:
    """Nothing starts half configured."""
    with pytest.raises(SettingsError, match="DATABASE_URL is not set: set it in the environment, or run `noesis up`"):
        load_settings()


def test_later_sources_win(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """platform.env, then .env, then the environment, then what the code says."""
    _platform(checkout, f"DATABASE_URL={URL}\nCHAT_MODEL=platform\nWEB_PORT=1001\nMAX_TOKENS=100\nBATCH_SIZE=1\n")
    assert load_settings().chat_model == "platform"
    (checkout / ".env").write_text("WEB_PORT=1002\nMAX_TOKENS=200\nBATCH_SIZE=2\n")
    monkeypatch.setenv("MAX_TOKENS", "300")
    monkeypatch.setenv("BATCH_SIZE", "3")
    loaded = load_settings(batch_size=4)
    assert (loaded.chat_model, loaded.web_port, loaded.max_tokens, loaded.batch_size) == ("platform", 1002, 300, 4)


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Terraform and compose files pass empty strings for what is not there."""
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("CHAT_MODEL", "")
    monkeypatch.setenv("WEB_PORT", "")
    loaded = load_settings()
    assert (loaded.chat_model, loaded.web_port) == ("extractive", 8000)


def test_an_unknown_name_in_a_file_is_refused(checkout: Path) -> None:
    """A misspelled setting must not be silently ignored."""
    _platform(checkout, f"DATABASE_URL={URL}\n")
    (checkout / ".env").write_text("CHAT_MODLE=x\n")
    with pytest.raises(SettingsError, match=r"Unknown setting CHAT_MODLE in \.env"):
        load_settings()


def test_an_unknown_name_with_our_prefix_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs' variables are none of our business; NOESIS_… is."""
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("SOMETHING_ELSE", "x")
    load_settings()
    monkeypatch.setenv("NOESIS_STAEG", "prod")
    with pytest.raises(SettingsError, match="Unknown setting NOESIS_STAEG in the environment"):
        load_settings()


@pytest.mark.parametrize("name", sorted(HARNESS))
def test_names_of_the_test_harness_are_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests and benchmarks read them; they do not stop the platform."""
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv(name, "x")
    load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NOESIS_STAGE", "production"),
        ("WEB_PORT", "eight thousand"),
        ("BATCH_SIZE", "0"),
        ("CHUNK_OVERLAP", "-1"),
        ("EMBEDDINGS_DIM", "4001"),
        ("PUSH_TOKEN_SIGNATURE", "ignored"),
        ("LOCAL_SIGN_IN", "perhaps"),
        ("LOG_FORMAT", "xml"),
    ],
)
def test_an_unusable_value_is_named_and_not_quoted(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the setting; its value stays out, because the next one may be a secret."""
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"{name} is not usable") as caught:
        load_settings()
    assert value not in str(caught.value)
    assert "secret-word" not in str(caught.value)


def test_every_problem_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody likes to mend settings one start at a time."""
    monkeypatch.setenv("WEB_PORT", "x")
    with pytest.raises(SettingsError, match=r"DATABASE_URL is not set.*WEB_PORT is not usable"):
        load_settings()


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Printing or logging the settings gives no password away."""
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("LITELLM_MASTER_KEY", "secret-word")
    loaded = load_settings()
    assert "secret-word" not in f"{loaded!r} {loaded} {loaded.model_dump_json()}"
    assert loaded.database_url.get_secret_value() == URL


def test_settings_cannot_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One object a process, the same from start to end."""
    monkeypatch.setenv("DATABASE_URL", URL)
    with pytest.raises(ValueError, match="frozen"):
        load_settings().chat_model = "other"


def test_the_services_own_key_goes_before_the_master_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a laptop there is only the master key; without any the sentence says which to set."""
    monkeypatch.setenv("DATABASE_URL", URL)
    with pytest.raises(SettingsError, match="LITELLM_API_KEY is not set"):
        load_settings().model_api_key()
    monkeypatch.setenv("LITELLM_MASTER_KEY", "master")
    assert load_settings().model_api_key() == "master"
    monkeypatch.setenv("LITELLM_API_KEY", "virtual")
    assert load_settings().model_api_key() == "virtual"


def test_home_is_one_absolute_folder(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NOESIS_HOME, with `~` and relative paths resolved; without it `.noesis` in the checkout."""
    assert home() == checkout / "home"
    monkeypatch.setenv("NOESIS_HOME", "~/platform")
    assert home() == Path.home() / "platform"
    monkeypatch.setenv("NOESIS_HOME", "platform")
    assert home() == Path.cwd() / "platform"
    monkeypatch.delenv("NOESIS_HOME")
    assert home() == checkout / ".noesis"
