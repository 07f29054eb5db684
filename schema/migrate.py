"""Migrations: what to run, a dry run that is rolled back, and a lock so that only one runs."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from shared.errors import NoesisError

HERE = Path(__file__).parent
BRANCHES = ("core", "rag")
LOCK = 0x6E6F6573  # "noes": one number for the advisory lock of migrations


class MigrationRunning(NoesisError):
    """Another migration holds the lock; wait for it or look at pg_stat_activity."""


def config(connection: Connection | None = None, output: io.StringIO | None = None) -> Config:
    """Alembic's configuration, without an ini file."""
    made = Config(output_buffer=output) if output else Config()
    made.set_main_option("script_location", str(HERE))
    made.set_main_option("version_locations", f"{HERE / 'core'};{HERE / 'rag'}")
    made.set_main_option("path_separator", ";")
    made.attributes["connection"] = connection
    return made


def upgrade(url: str, *, branch: str = "heads", dry_run: bool = False) -> list[str]:
    """Bring the database up to date; returns the revisions applied. `url` is the owner role's.

    `dry_run` runs the same statements in the same transaction and rolls it back. Raises MigrationRunning when
    another one does not finish within a minute.
    """
    target = "heads" if branch == "heads" else f"{branch}@head"
    with _locked(url) as connection:
        before = _current(connection)
        connection.commit()
        transaction = connection.begin()
        command.upgrade(config(connection), target)
        after = _current(connection)
        if dry_run:
            transaction.rollback()
        else:
            transaction.commit()
    script = ScriptDirectory.from_config(config())
    return [step.revision for step in reversed(list(script.walk_revisions())) if step.revision in after - before] or []


def sql(branch: str = "heads") -> str:
    """The SQL of all migrations from an empty database, as text."""
    output = io.StringIO()
    command.upgrade(config(output=output), "heads" if branch == "heads" else f"{branch}@head", sql=True)
    return output.getvalue()


def _current(connection: Connection) -> set[str]:
    """Every revision applied, not only the heads."""
    heads = MigrationContext.configure(connection).get_current_heads()
    script = ScriptDirectory.from_config(config())
    return {step.revision for head in heads for step in script.iterate_revisions(head, "base")}


@contextmanager
def _locked(url: str) -> Iterator[Connection]:
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        # Polled: waiting inside the lock call can deadlock with CREATE INDEX CONCURRENTLY (FACTS).
        for _ in range(120):
            if connection.execute(text("select pg_try_advisory_lock(:lock)"), {"lock": LOCK}).scalar():
                break
            connection.rollback()
            time.sleep(0.5)
        else:
            raise MigrationRunning("another migration is running and did not finish within a minute")
        connection.commit()
        try:
            yield connection
        finally:
            connection.rollback()
            connection.execute(text("select pg_advisory_unlock(:lock)"), {"lock": LOCK})
            connection.commit()
    engine.dispose()
