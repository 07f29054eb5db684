"""Roles, database and extensions: what an administrator sets up once before the first migration."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool

OWNER, APPLICATION, OPERATOR = "noesis_owner", "noesis_app", "noesis_operator"
EXTENSIONS = ("vector",)
IDLE_SECONDS = 60
"""How long a transaction may stand still: none waits for anything outside, so its process is stopped or lost without a
goodbye, and whoever needs its locks would wait for ever."""


def bootstrap(admin_url: str, passwords: Mapping[str, str], database: str = "noesis2") -> None:
    """Create the three roles, the database and its extensions, or bring their passwords up to date.

    `admin_url` is a superuser's (on Cloud SQL: `cloudsqlsuperuser`'s) URL to any database of the server; `passwords`
    maps the three role names to passwords. Running it again changes nothing else.
    """
    engine = create_engine(admin_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        for role in (OWNER, APPLICATION, OPERATOR):
            _role(connection, role, passwords[role])
        for role in (APPLICATION, OPERATOR):
            connection.exec_driver_sql(f"alter role {role} set idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
        known = connection.execute(text("select 1 from pg_database where datname = :name"), {"name": database})
        if known.scalar() is None:
            # Cloud SQL's administrator is no superuser: it must be a member of a role to give it a database.
            connection.exec_driver_sql(f"grant {OWNER} to current_user")
            connection.exec_driver_sql(f'create database "{database}" owner {OWNER}')
    engine.dispose()
    inside = create_engine(make_url(admin_url).set(database=database), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with inside.connect() as connection:
        for extension in EXTENSIONS:
            connection.exec_driver_sql(f"create extension if not exists {extension} schema public")
        connection.exec_driver_sql(f'revoke all on database "{database}" from public')
        connection.exec_driver_sql("revoke create on schema public from public")
        connection.exec_driver_sql(f'grant connect, temporary on database "{database}" to {APPLICATION}, {OPERATOR}')
        for schema in ("core", "rag"):
            connection.exec_driver_sql(f"create schema if not exists {schema} authorization {OWNER}")
            connection.exec_driver_sql(f"grant usage on schema {schema} to {APPLICATION}, {OPERATOR}")
    inside.dispose()


def _role(connection: Connection, role: str, password: str) -> None:
    quoted = "'" + password.replace("'", "''") + "'"
    known = connection.execute(text("select 1 from pg_roles where rolname = :role"), {"role": role}).scalar()
    verb = "alter" if known else "create"
    connection.exec_driver_sql(f"{verb} role {role} login nosuperuser nocreatedb nocreaterole password {quoted}")
