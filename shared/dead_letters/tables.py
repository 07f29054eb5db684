"""The table of dead letters (schema `core`). It belongs to the operators, not to a tenant: the tenant may be unknown
and the bytes undecodable."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, DateTime, Index, Integer, LargeBinary, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB

from shared.database import metadata

CLASSES = ("permanent", "transient", "poison", "budget")
"""permanent: trying again cannot help unless something is set up (a source bound). transient: every delivery failed.
poison: unreadable, or it failed again after every automatic replay. budget: a spending limit stands in the way."""

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("letter_id", Uuid, primary_key=True),
    Column("origin", Text, nullable=False),
    Column("message_id", Text, nullable=False),
    Column("tenant_id", Uuid),
    Column("name", Text),
    Column("class", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("attributes", JSONB, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("traceparent", Text),
    Column("archived_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    Column("replayed_at", DateTime(timezone=True)),
    Column("event_id", Uuid),
    Column("replays", Integer, nullable=False, server_default="0"),
    Column("automatic_replays", Integer, nullable=False, server_default="0"),
    Column("replay_id", Uuid),
    Column("discarded_at", DateTime(timezone=True)),
    CheckConstraint(f"class in {CLASSES}", name="dead_letters_class_check"),
    Index("dead_letters_archived_idx", "archived_at"),
    Index("dead_letters_replay_idx", "replay_id", postgresql_where=text("replay_id is not null")),
    schema="core",
)
"""`event_id` is the message's own claim; `replay_id` is the event id under which the letter was last sent again, so a
letter whose `event_id` is another's `replay_id` is the same message, failing again."""
