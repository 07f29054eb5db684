"""Alembic's entry: runs migrations on the connection that schema.migrate hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

connection = context.config.attributes.get("connection")

if connection is None:
    context.configure(dialect_name="postgresql", literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    context.configure(connection=connection, transaction_per_migration=False)
    # A migration that waits for a lock blocks everyone behind it: give up soon, try again later.
    connection.execute(text("set local lock_timeout = '5s'"))
    connection.execute(text("set local statement_timeout = '300s'"))
    context.run_migrations()
