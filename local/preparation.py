"""The database of the platform made ready, in a process of its own: `python -m local.preparation --port N`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from sqlalchemy import make_url

from local import postgres
from local.credentials import ROLE_SETTINGS
from schema import migrate, roles
from shared.database import operator_session
from shared.errors import NoesisError
from shared.retrieval.spaces import activate_first, space_for_new_tenants
from shared.settings import Settings, get_settings
from shared.tenants.directory import create_tenant

DEMO_TENANT = "demo"
"""The tenant that is there from the first start, so that `noesis submit` and the page work at once."""


def prepare_database(admin_url: str, passwords: Mapping[str, str], settings: Settings) -> None:
    """Roles, database, extensions, migrations and the demo tenant; a second run changes nothing.

    `admin_url` is the superuser's, `passwords` maps role to password, `settings` are those of the platform.
    Raises NoesisError when a migration does not apply.
    """
    roles.bootstrap(admin_url, passwords)
    assert settings.migration_database_url
    for revision in migrate.upgrade(settings.migration_database_url.get_secret_value()):
        print(f"migrated to {revision}", flush=True)
    with operator_session() as session:
        tenant = create_tenant(session, DEMO_TENANT, "Demo", f"admin@{DEMO_TENANT}.example")
        space = space_for_new_tenants(session, settings)
        activate_first(session, tenant.tenant_id, space)


def main() -> None:
    """Prepare the database of the running server and say what was done; status 1 with one line on failure."""
    parser = argparse.ArgumentParser(prog="python -m local.preparation", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    settings = get_settings()
    try:
        server = postgres.start(settings.noesis_home, arguments.port)  # the runner started it: this adopts
        prepare_database(server.admin_dsn, _passwords(settings), settings)
    except NoesisError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _passwords(settings: Settings) -> dict[str, str]:

    found: dict[str, str] = {}
    for setting, role in ROLE_SETTINGS.items():
        url = getattr(settings, setting.lower())
        password = make_url(url.get_secret_value()).password if url else None
        if not isinstance(password, str):
            raise NoesisError(f"{setting} carries no password: delete platform.env in NOESIS_HOME and start again")
        found[role] = password
    return found


if __name__ == "__main__":
    main()
