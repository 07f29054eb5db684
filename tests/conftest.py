"""What tests of all kinds share: a real PostgreSQL, tenants, and the in-memory twins of the adapters."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import hypothesis
import pytest
from sqlalchemy import text

from shared import database as db
from shared import messaging
from shared.fakes import FakeBus, FakeModels, FakeStorage
from shared.retrieval.spaces import Space, activate_first, ensure_space
from shared.services import Services, services
from shared.settings import Settings, get_settings
from shared.tenants.directory import Principal, create_tenant, memberships

MODEL, DIMENSION = "fake", 64

# Time is no property of a function on a machine that does other things too: no example fails for being slow to run or
# to make. The gate tries the same examples every time, so that a change is refused for what it changed;
# `pytest --hypothesis-profile=search --timeout=0 tests/unit` looks for new ones.
hypothesis.settings.register_profile(
    "noesis",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("noesis")
hypothesis.settings.register_profile("search", derandomize=False, max_examples=2_000)


@dataclass(frozen=True)
class Database:
    """A migrated database and the URLs of its roles."""

    admin_url: str
    owner_url: str
    application_url: str
    operator_url: str


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The material beside the project (real documents); tests that need it skip when it is absent."""
    folder = Path(os.environ.get("NOESIS_SHARED") or Path(__file__).parents[1].parent / "shared")
    if not (folder / "data").is_dir():
        pytest.skip("the folder ../shared with real documents is absent")
    return folder


@pytest.fixture(scope="session")
def database() -> Iterator[Database]:
    """PostgreSQL of this test session, migrated, with the settings of the process pointing at it."""
    from local import postgres
    from schema import migrate, roles

    package = os.environ.get("POSTGRES_PACKAGE", postgres.EMBEDDED)
    with postgres.temporary(package) as server:
        passwords = {role: uuid4().hex for role in (roles.OWNER, roles.APPLICATION, roles.OPERATOR)}
        roles.bootstrap(server.admin_dsn, passwords)
        urls = {
            role: f"postgresql+pg8000://{role}:{password}@{server.host}:{server.port}/noesis2"
            for role, password in passwords.items()
        }
        migrate.upgrade(urls[roles.OWNER])
        made = Database(server.admin_dsn, urls[roles.OWNER], urls[roles.APPLICATION], urls[roles.OPERATOR])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NOESIS_HOME", str(server.data.parent / "home"))
            patch.setenv("DATABASE_URL", made.application_url)
            patch.setenv("OPERATOR_DATABASE_URL", made.operator_url)
            patch.setenv("MIGRATION_DATABASE_URL", made.owner_url)
            patch.setenv("LITELLM_MASTER_KEY", "test-key")
            patch.setenv("SECRET_KEY", "a-key-for-these-tests-only-0123456789abcdef")
            patch.setenv("EMBEDDINGS_MODEL", MODEL)
            patch.setenv("EMBEDDINGS_DIM", str(DIMENSION))
            get_settings.cache_clear()
            services.cache_clear()
            db.forget_engines()
            yield made
            db.forget_engines()
            get_settings.cache_clear()
            services.cache_clear()


@pytest.fixture
def bus() -> Iterator[FakeBus]:
    """A bus that keeps what was published."""
    fake = FakeBus()
    messaging.use_bus(fake)
    yield fake
    messaging.use_bus(None)


@pytest.fixture
def settings(database: Database) -> Settings:
    """The settings of this test process."""
    return get_settings()


@pytest.fixture
def fake_services(settings: Settings, bus: FakeBus) -> Services:
    """Services whose storage and models are the twins."""
    return Services(settings, _storage=FakeStorage(), _models=FakeModels())


@pytest.fixture
def make_tenant(database: Database) -> Callable[..., Principal]:
    """Makes tenants; returns the first administrator as a principal."""

    def make(slug: str = "") -> Principal:
        name = slug or f"t-{uuid4().hex[:12]}"
        email = f"admin@{name}.example"
        with db.operator_session() as operator:
            tenant = create_tenant(operator, name, name.title(), email)
            space: Space = ensure_space(operator, MODEL, DIMENSION)
            activate_first(operator, tenant.tenant_id, space)
            # The platform's, not the tenant's: what an earlier test's provider asked for does not count here.
            operator.execute(text("delete from core.provider_gates"))
        return memberships(email)[0]

    return make


@pytest.fixture
def tenant(make_tenant: Callable[..., Principal]) -> Principal:
    """A fresh tenant, as its administrator."""
    return make_tenant()
