"""Every setting of the product, and the only place that reads the environment.

Sources, later ones win: `$NOESIS_HOME/platform.env` (written by `noesis up`, laptop only), `.env` in the checkout
(people, dev only), the process environment (everything in the cloud). An unknown name in one of the files, or one
with our prefix `NOESIS_` in the environment, fails at start with a sentence that says what to do.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from shared.errors import SettingsError

CHECKOUT = Path(__file__).resolve().parents[1]
PREFIX = "NOESIS_"


def home() -> Path:
    """The one folder that holds all data of a laptop platform (`NOESIS_HOME`, default `.noesis/` in the checkout)."""
    return Path(os.environ.get("NOESIS_HOME") or CHECKOUT / ".noesis").expanduser().absolute()


class Settings(BaseSettings):
    """One object a process; frozen. Names are those of the environment in lower case."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_ignore_empty=True)

    noesis_stage: Literal["dev", "staging", "prod"] = "dev"
    noesis_home: Path = Field(default_factory=home)

    # Database: one role each for the services, for work across tenants, and for migrations.
    database_url: SecretStr
    operator_database_url: SecretStr | None = None
    migration_database_url: SecretStr | None = None
    cloud_sql_instance: str = ""
    """`project:region:instance`: connect through the Cloud SQL connector; the URL then only names user and database."""
    database_pool: int = Field(default=5, ge=1, le=50)
    database_statement_seconds: float = Field(default=30, gt=0, le=600)
    """How long a statement of the services may take; work on all that a tenant has takes its own time."""

    # Models, always through the LiteLLM proxy.
    litellm_url: str = "http://127.0.0.1:4000"
    litellm_master_key: SecretStr | None = None
    litellm_api_key: SecretStr | None = None
    """The virtual key of this service; without it the master key is used (laptop)."""
    chat_model: str = "extractive"
    chat_abilities: Literal["auto", "quotes", "writes", "tools"] = "auto"
    """What CHAT_MODEL can do; `auto` asks the proxy. `quotes`: as the bundled one, `tools`: writes and calls tools."""
    max_tokens: int = Field(default=1024, ge=16, le=32_768)
    run_steps: int = Field(default=24, ge=8, le=200)
    """Steps of the agent's graph for one question; near the end it answers from what there is."""
    run_tokens: int = Field(default=200_000, ge=1_000)
    """Tokens, in and out, that the answer of one question may take; EUR a run: `noesis budgets set run`."""
    embeddings_model: str = "use-v3"
    embeddings_dim: int = Field(default=512, ge=1, le=4000)
    embeddings_api_base: str = ""
    more_embeddings_models: str = ""
    """Further LiteLLM embedding models that the proxy serves, by commas: where a campaign may go, or comes from."""
    embeddings_query_prefix: str = Field(default="", max_length=100)
    embeddings_passage_prefix: str = Field(default="", max_length=100)
    """Written before every question and chunk, for models that were trained so and servers that do not write it. With
    model, dimension and chunk size they make the vector space of new tenants; who has one changes it by a campaign."""
    rerank_model: str = ""
    """Puts the best candidates of a search in order again: `sentences` (bundled) or any LiteLLM rerank model; empty:
    off."""
    rerank_api_base: str = ""
    rerank_candidates: int = Field(default=20, ge=2, le=100)
    batch_size: int = Field(default=128, ge=1, le=512)
    batch_tokens: int = Field(default=100_000, ge=1_000)
    """Tokens one embedding request may carry; providers cap requests at about 300,000."""
    campaign_batches: int = Field(default=4, ge=1, le=200)
    """Batches that all campaigns together have under way: new documents and questions share the workers with them."""
    campaign_batch_size: int = Field(default=16, ge=1, le=512)
    """Chunks in a campaign's batch: nobody waits behind it longer than that many chunks take."""

    # Documents.
    documents_in_progress: int = Field(default=32, ge=1, le=10_000)
    """Documents of one tenant in progress at once; the others wait for their turn, so that nobody else waits for them.
    More than all workers together can hold (prod: 20 instances x 2)."""
    chunk_size: int = Field(default=800, ge=50, le=1200)
    chunk_overlap: int = Field(default=80, ge=0, le=200)
    document_max_bytes: int = Field(default=25 * 1024 * 1024, ge=1)
    parse_seconds: float = Field(default=60, gt=0)
    parse_memory_mb: int = Field(default=1024, ge=64)
    ocr: Literal["auto", "off"] = "auto"
    """Text recognition of scanned pages; `auto` where tesseract is installed, within the limits of parsing."""
    ocr_languages: str = Field(default="deu+eng", pattern=r"^[A-Za-z_]{2,20}(\+[A-Za-z_]{2,20})*$")
    blob_url: str = ""
    """`file:///folder` or `gs://bucket/prefix`."""
    blob_signer: str = ""
    """Service account in whose name uploads to `gs://` are signed (IAM signBlob); without it large files take the way
    through web."""
    blob_grace_days: float = Field(default=8.0, ge=1, le=365)
    """Days that a blob nobody refers to is kept; more than the seven that Pub/Sub may keep a message that names it."""

    # Web sources.
    web_sources_allow: str = ""
    """Hosts and networks that may be fetched although they are not public: `host[:port]`, `CIDR[:port]`, by commas."""
    web_sources_delay: float = Field(default=1.0, ge=0, le=60)
    """Seconds between two requests to a site that states no Crawl-delay."""

    # Tools.
    tool_hosts_allow: str = ""
    """Hosts and networks the HTTP tool may reach although they are not public, in the form of WEB_SOURCES_ALLOW."""
    tool_secrets: dict[str, SecretStr] = {}
    """Credentials of the HTTP tool as a JSON object: `{"<slug of the tenant>/<name>": "<value of the header>"}`."""

    # Bus. The emulator variables are Google's own where they exist.
    google_cloud_project: str = "noesis-local"
    pubsub_emulator_host: str = ""
    pubsub_rest_url: str = "https://pubsub.googleapis.com"
    cloud_tasks_emulator_host: str = ""
    cloud_tasks_location: str = "europe-west4"
    cloud_tasks_service_account: str = ""
    publish_timeout: float = Field(default=10, gt=0)

    # Push requests: who may call our functions.
    push_issuer: str = "https://accounts.google.com"
    push_jwks_url: str = "https://www.googleapis.com/oauth2/v3/certs"
    push_audience: str = ""
    """Base URL of this service; the audience of a push is this plus the path of the subscription's endpoint."""
    push_service_account: str = ""
    push_token_signature: Literal["verified", "removed"] = "verified"  # noqa: S105 # a mode, not a password
    """`removed` only where Cloud Run's IAM has verified the token before us and took the signature away."""

    # Web.
    secret_key: SecretStr | None = None
    allowed_hosts: str = "127.0.0.1,localhost,[::1]"
    local_sign_in: bool = False
    """Sign in as any member without a password; refused unless the stage is dev and the request is from loopback."""

    # Observability.
    log_format: Literal["json", "console"] = "json"
    otel_service_name: str = "noesis2"
    otel_exporter_otlp_endpoint: str = ""
    """Any OTLP collector over HTTP; traces go to this plus `/v1/traces`."""
    otel_exporter_otlp_traces_endpoint: str = ""
    """The same with its whole path; goes before the other."""
    otel_exporter_otlp_headers: SecretStr = SecretStr("")
    """`name=value,name=value`, values percent-encoded; sent to the collector and to nobody else."""
    langfuse_host: str = ""
    langfuse_public_key: str = ""
    langfuse_secret_key: SecretStr = Field(
        default=SecretStr(""), validation_alias=AliasChoices("langfuse_secret_key", "langfuse_key")
    )
    trace_sample_rate: Literal["stage"] | Annotated[float, Field(ge=0, le=1)] = "stage"
    """The part of traces that is kept; `stage`: dev 1, staging 0.25, prod 0.05. Failures are always kept."""
    trace_content: Literal["stage", "yes", "no"] = "stage"
    """Whether traces carry masked prompts and answers; `stage`: everywhere but in prod."""
    trace_flush_seconds: float = Field(default=1.0, gt=0, le=10)
    """How long sending a trace may keep an answer waiting."""

    # Laptop only (local/): ports and the parts of the platform.
    postgres_port: int = 15432
    bus_pubsub_port: int = 8085
    bus_http_port: int = 8086
    bus_tasks_port: int = 8087
    litellm_port: int = 4000
    functions_port: int = 8101
    web_port: int = 8000
    bus_test_clock: bool = False

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then environment, then the two files; no secret files."""
        return init_settings, env_settings, dotenv_settings

    @model_validator(mode="after")
    def _langfuse_is_whole(self) -> Self:
        if bool(self.langfuse_host) != bool(self.langfuse_public_key and self.langfuse_secret_key):
            raise ValueError("LANGFUSE_HOST, LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY belong together")
        return self

    def model_api_key(self) -> str:
        """The key for LiteLLM. Raises SettingsError when neither LITELLM_API_KEY nor LITELLM_MASTER_KEY is set."""
        key = self.litellm_api_key or self.litellm_master_key
        if key is None:
            raise SettingsError("LITELLM_API_KEY is not set: give this service its virtual key for the LiteLLM proxy.")
        return key.get_secret_value()


def load_settings(**overrides: object) -> Settings:
    """Settings from files and environment. Raises SettingsError with one sentence for each problem."""
    known = {name.upper() for name in Settings.model_fields}
    stray = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known | HARNESS)
    if stray:
        raise SettingsError(
            f"Unknown setting {', '.join(stray)} in the environment: remove it or correct its spelling."
        )
    files = (home() / "platform.env", CHECKOUT / ".env")
    try:
        return Settings(_env_file=files, **overrides)  # type: ignore[call-arg,arg-type]
    except ValidationError as error:
        raise SettingsError(" ".join(_sentence(problem) for problem in error.errors())) from None


HARNESS = {"NOESIS_SHARED"}
"""Names with our prefix that tests and benchmarks read (where the material beside the project lies)."""


def _sentence(problem: object) -> str:
    assert isinstance(problem, dict)
    name = ".".join(str(part) for part in problem["loc"]).upper()
    if not name:
        return f"{problem['msg'].removeprefix('Value error, ')}."
    if problem["type"] == "missing":
        return f"{name} is not set: set it in the environment, or run `noesis up`, which sets it on a laptop."
    if problem["type"] == "extra_forbidden":
        return f"Unknown setting {name} in .env or platform.env: remove it or correct its spelling."
    return f"{name} is not usable: {problem['msg']}."


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return load_settings()
