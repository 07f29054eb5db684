"""The adapters of a process, made when first used. Use cases get them as an argument; tests pass fakes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from shared.settings import Settings, get_settings

if TYPE_CHECKING:
    from shared.fetching.client import Fetcher
    from shared.llm import Models
    from shared.storage import Storage


class Clock:
    """The time; its twin in `shared.fakes` is moved by hand."""

    def now(self) -> datetime:
        """The present moment, aware, UTC."""
        return datetime.now(UTC)


@dataclass
class Services:
    """Settings and lazily made adapters."""

    settings: Settings
    clock: Clock = field(default_factory=Clock)
    _storage: Storage | None = None
    _models: Models | None = None
    _web: Fetcher | None = None

    @property
    def storage(self) -> Storage:
        """The object store."""
        if self._storage is None:
            from shared.storage import make_storage  # late: Google's client is heavy

            self._storage = make_storage(self.settings)
        return self._storage

    @property
    def models(self) -> Models:
        """The models behind LiteLLM."""
        if self._models is None:
            from shared.llm import make_models  # late: only embed, agent and search need httpx

            self._models = make_models(self.settings)
        return self._models

    @property
    def web(self) -> Fetcher:
        """The public web, guarded."""
        if self._web is None:
            from shared.fetching.client import make_fetcher  # late: only ingest and maintenance fetch pages

            self._web = make_fetcher(self.settings)
        return self._web


@lru_cache(maxsize=1)
def services() -> Services:
    """The services of this process."""
    return Services(get_settings())
