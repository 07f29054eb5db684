"""What runs on a laptop: every process of the platform with its command, environment, port and health check.

Read from terraform/topology.yaml, so that a service added there runs here too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from local.credentials import ROLE_SETTINGS, Credentials
from local.ports import HOST, Port
from shared.errors import NoesisError
from shared.settings import CHECKOUT, Settings

TOPOLOGY = CHECKOUT / "terraform" / "topology.yaml"
DATABASE = "noesis2"
PUSH_SERVICE_ACCOUNT = "pubsub-push@noesis-local.iam.gserviceaccount.com"

TRACE_SECRETS = ("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY", "LANGFUSE_KEY", "OTEL_EXPORTER_OTLP_HEADERS")
"""Traces leave from our processes, masked; the model service must not be able to send its own beside them."""

# Two malloc arenas and one BLAS thread a process: on two cores more of either only costs memory.
SMALL = {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


class NotInstalledError(NoesisError):
    """A part of the platform is missing on this machine; the message says what installs it."""


@dataclass(frozen=True)
class Service:
    """One process. It starts when everything in `after` is ready; it is ready when `health` answers.

    `health` is a path on `port` (an HTTP status in `healthy` means ready); without one the service is a step that
    is done when it ends with status 0.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    port: Port | None = None
    health: str = ""
    healthy: tuple[int, ...] = (200,)
    after: tuple[str, ...] = ()
    queues: bool = False
    """A function has no route beside its work: with every thread at work the health check waits in its queue."""


def topology() -> dict[str, Any]:
    """The declaration of topics, subscriptions, queues, schedules and services."""
    loaded: dict[str, Any] = yaml.safe_load(TOPOLOGY.read_text(encoding="utf-8"))
    return loaded


def function_names(declared: Mapping[str, Any]) -> list[str]:
    """The services of kind `function`, in the order of the topology."""
    return [name for name, service in declared["services"].items() if service["kind"] == "function"]


def platform_settings(settings: Settings, ports: Mapping[str, Port], made: Credentials) -> dict[str, str]:
    """The settings every process and every command of this platform shares (the content of platform.env)."""
    issuer = f"http://{HOST}:{ports['bus-http'].number}"
    home = settings.noesis_home
    urls = {
        setting: f"postgresql+pg8000://{role}:{made.passwords[role]}@{HOST}:{ports['postgres'].number}/{DATABASE}"
        for setting, role in ROLE_SETTINGS.items()
    }
    return urls | {
        "NOESIS_STAGE": "dev",
        "LITELLM_URL": f"http://{HOST}:{ports['litellm'].number}",
        "LITELLM_MASTER_KEY": made.litellm_master_key,
        "GOOGLE_CLOUD_PROJECT": settings.google_cloud_project,
        "PUBSUB_EMULATOR_HOST": f"{HOST}:{ports['bus'].number}",
        "CLOUD_TASKS_EMULATOR_HOST": f"{HOST}:{ports['bus-tasks'].number}",
        "PUBSUB_REST_URL": issuer,
        "PUSH_ISSUER": issuer,
        "PUSH_JWKS_URL": f"{issuer}/jwks",
        "PUSH_SERVICE_ACCOUNT": PUSH_SERVICE_ACCOUNT,
        "BLOB_URL": (home / "blobs").as_uri(),
        "LOCAL_SIGN_IN": "true",
        "SECRET_KEY": made.secret_key,
    }


def of_platform(settings: Settings, ports: Mapping[str, Port], shared: Mapping[str, str]) -> list[Service]:
    """Every process besides PostgreSQL, in the order in which `noesis status` shows them."""
    declared = topology()
    base = dict(os.environ) | SMALL | dict(shared) | {"NOESIS_HOME": str(settings.noesis_home)}
    functions = function_names(declared)
    doors = [_function(name, declared["services"][name], ports[name], base, settings.noesis_home) for name in functions]
    web = _web(declared["services"]["web"], ports["web"], base)
    return [
        _preparation(ports["postgres"], base),
        _litellm(settings, ports["litellm"], base),
        *doors,
        web,
        _bus(settings, ports, base, functions),
    ]


def _preparation(postgres: Port, base: Mapping[str, str]) -> Service:
    # A process of its own, so that SQLAlchemy and Alembic do not stay in the runner's memory for ever.
    command = (sys.executable, "-m", "local.preparation", "--port", str(postgres.number))
    return Service("database", command, base, after=("postgres",))


def _litellm(settings: Settings, port: Port, base: Mapping[str, str]) -> Service:
    python = CHECKOUT / ".venv-litellm" / "bin" / "python"
    if not python.exists():
        raise NotInstalledError("LiteLLM's environment .venv-litellm is missing: run `make up`, which installs it")
    models = {
        "CHAT_MODEL": settings.chat_model,
        "EMBEDDINGS_MODEL": settings.embeddings_model,
        "EMBEDDINGS_DIM": str(settings.embeddings_dim),
        "EMBEDDINGS_API_BASE": settings.embeddings_api_base,
        "MORE_EMBEDDINGS_MODELS": settings.more_embeddings_models,
        "RERANK_MODEL": settings.rerank_model,
        "RERANK_API_BASE": settings.rerank_api_base,
    }
    # The model service has no business in the database, and PYTHONPATH would mix the two environments.
    hidden = {*ROLE_SETTINGS, "SECRET_KEY", "PYTHONPATH", "VIRTUAL_ENV", *TRACE_SECRETS}
    own = {name: value for name, value in base.items() if name not in hidden} | {k: v for k, v in models.items() if v}
    command = (str(python), "-m", "litellm_service", "--host", HOST, "--port", str(port.number))
    return Service("litellm", command, own, port, "/health/liveliness")


def _function(name: str, declared: Mapping[str, Any], port: Port, base: Mapping[str, str], home: Path) -> Service:
    # gunicorn puts its control socket into this folder; in the default one the four functions would fight for it.
    runtime = home / "run" / name
    own = {
        "THREADS": str(declared.get("laptop_threads", declared["concurrency"])),
        "WORKERS": "1",
        "CLOUD_RUN_TIMEOUT_SECONDS": str(declared["timeout"]),
        "DATABASE_POOL": str(declared["pool"]),
        "PUSH_AUDIENCE": f"http://{HOST}:{port.number}",
        "XDG_RUNTIME_DIR": str(runtime),
        "OTEL_SERVICE_NAME": f"noesis2-{name}",
    }
    source = ("--source", str(CHECKOUT / declared["source"]), "--target", declared["target"])
    command = [sys.executable, "-m", "functions_framework", *source, "--signature-type", "http"]
    command += ["--host", HOST, "--port", str(port.number)]
    # The framework answers /robots.txt with 404 by itself, without calling the function.
    return Service(
        name, tuple(command), dict(base) | own, port, "/robots.txt", (404,), after=("database",), queues=True
    )


def _web(declared: Mapping[str, Any], port: Port, base: Mapping[str, str]) -> Service:
    own = {
        "DATABASE_POOL": str(declared["pool"]),
        "OTEL_SERVICE_NAME": "noesis2-web",
    }
    command = [sys.executable, "-m", "gunicorn", "web:create_app()", "--bind", f"{HOST}:{port.number}"]
    command += ["--worker-class", "gthread", "--workers", "1", "--threads", str(declared["concurrency"])]
    # Event streams end after 300 s by themselves; on the way down nobody waits for one.
    command += ["--timeout", str(declared["timeout"]), "--graceful-timeout", "3", "--preload", "--no-control-socket"]
    return Service("web", tuple(command), dict(base) | own, port, "/health/liveliness", after=("database",))


def _bus(settings: Settings, ports: Mapping[str, Port], base: Mapping[str, str], functions: list[str]) -> Service:
    home = settings.noesis_home / "bus"
    command = [sys.executable, "-m", "local.bus", "--topology", str(TOPOLOGY), "--home", str(home)]
    command += ["--host", HOST, "--pubsub-port", str(ports["bus"].number)]
    command += ["--http-port", str(ports["bus-http"].number), "--tasks-port", str(ports["bus-tasks"].number)]
    command += ["--project", settings.google_cloud_project]
    for name in functions:
        command += ["--push-base", f"{name}=http://{HOST}:{ports[name].number}"]
    if settings.bus_test_clock:
        command += ["--test-clock"]
    # Last: a push to a function that does not listen yet costs the message its minimum backoff of 30 s.
    return Service("bus", tuple(command), base, ports["bus-http"], "/healthz", after=(*functions, "web", "litellm"))
