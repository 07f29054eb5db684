"""The only thing that changes tables: roles, and Alembic migrations in two branches (`core`, `rag`)."""
