"""Row-level security as SQL: the same three policies for every tenant table."""

from __future__ import annotations

from schema.roles import APPLICATION, OPERATOR, OWNER

# Casting the setting (not the column) keeps the index usable; nullif because after a commit the setting is '' (FACTS).
TENANT = "tenant_id = (select nullif(current_setting('app.tenant_id', true), '')::uuid)"


def protect(table: str, *, application: str = "select, insert, update, delete") -> str:
    """Enable and force row-level security: the application sees its tenant's rows, owner and operator see all.

    The owner has a policy of its own because under FORCE its data migrations would otherwise update nothing.
    """
    return f"""
alter table {table} enable row level security;
alter table {table} force row level security;
create policy tenant on {table} to {APPLICATION} using ({TENANT}) with check ({TENANT});
create policy owner on {table} to {OWNER} using (true) with check (true);
create policy operator on {table} to {OPERATOR} using (true) with check (true);
grant {application} on {table} to {APPLICATION};
grant select, insert, update, delete on {table} to {OPERATOR};
"""


def platform(table: str, *, application: str = "", operator: str = "select, insert, update, delete") -> str:
    """A table of the platform without a tenant: the application gets only what is named (`select` or `insert`)."""
    statements = f"""
alter table {table} enable row level security;
alter table {table} force row level security;
create policy owner on {table} to {OWNER} using (true) with check (true);
create policy operator on {table} to {OPERATOR} using (true) with check (true);
grant {operator} on {table} to {OPERATOR};
"""
    if application == "select":
        statements += f"create policy application on {table} for select to {APPLICATION} using (true);\n"
    elif application == "insert":
        statements += f"create policy application on {table} for insert to {APPLICATION} with check (true);\n"
    if application:
        statements += f"grant {application} on {table} to {APPLICATION};\n"
    return statements
