"""The platform's own secrets: made once, kept in files only their owner can read."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from dotenv import dotenv_values

# Which setting carries the password of which role. The names are those of schema.roles (a test compares them), which
# is not imported here: it brings SQLAlchemy, 36 MB that the runner would carry for as long as it lives.
ROLE_SETTINGS = {
    "DATABASE_URL": "noesis_app",
    "OPERATOR_DATABASE_URL": "noesis_operator",
    "MIGRATION_DATABASE_URL": "noesis_owner",
}

_BYTES = 24  # 192 bits of chance, 32 characters


@dataclass(frozen=True)
class Credentials:
    """What the platform made up for itself: a password for each database role, LiteLLM's key, the web's cookie key."""

    passwords: Mapping[str, str]
    litellm_master_key: str
    secret_key: str


def load(home: Path) -> Credentials:
    """The credentials of this home: those in platform.env, and new ones for whatever is missing there."""
    path = home / "platform.env"
    known = {name: value for name, value in dotenv_values(path).items() if value} if path.exists() else {}

    def password(setting: str) -> str:
        return urlsplit(known.get(setting, "")).password or secrets.token_urlsafe(_BYTES)

    return Credentials(
        passwords={role: password(setting) for setting, role in ROLE_SETTINGS.items()},
        litellm_master_key=known.get("LITELLM_MASTER_KEY") or "sk-" + secrets.token_urlsafe(_BYTES),
        secret_key=known.get("SECRET_KEY") or secrets.token_urlsafe(_BYTES),
    )


def write_platform_env(home: Path, values: Mapping[str, str]) -> Path:
    """Write platform.env (mode 0600), which `shared.settings` reads for every command run on this laptop."""
    lines = ["# Written by `noesis up` at every start; its passwords and keys are kept. Own settings go into .env."]
    lines += [f"{name}={value}" for name, value in sorted(values.items())]
    path = home / "platform.env"
    write_secret(path, "\n".join(lines) + "\n")
    return path


def write_secret(path: Path, text: str) -> None:
    """Write a file only its owner can read, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
