"""LangGraph's checkpoints in PostgreSQL: one tenant, one commit a step, and only for who holds the run.

Same contract as LangGraph's own savers (tests run its conformance suite), with what those lack: a tenant column under
row-level security, and `transaction`, in which a write renews the lease of the run or is refused.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from uuid import UUID

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_checkpoint_metadata,
)
from sqlalchemy import text
from sqlalchemy.orm import Session

from functions.agent.parts import FORMAT, Stored, divide, unite
from shared.conversations.steps import Step
from shared.database import tenant_session

_PUT = text(
    "insert into core.checkpoints (tenant_id, thread_id, checkpoint_ns, checkpoint_id, parent_id, kind, checkpoint, "
    "metadata) values (:tenant, :thread, :ns, :id, :parent, :kind, :checkpoint, cast(:metadata as jsonb)) "
    "on conflict (tenant_id, thread_id, checkpoint_ns, checkpoint_id) "
    "do update set kind = excluded.kind, checkpoint = excluded.checkpoint, metadata = excluded.metadata"
)

# LangGraph saves the writes of a task beside the checkpoint that follows: where only the last one stays, late ones
# belong to a checkpoint that is gone.
_WRITE = (
    "insert into core.checkpoint_writes (tenant_id, thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, "
    "position, channel, kind, value) select cast(:tenant as uuid), cast(:thread as text), cast(:ns as text), "
    "cast(:id as text), cast(:task as text), cast(:path as text), cast(:position as integer), cast(:channel as text), "
    "cast(:kind as text), cast(:value as bytea) where cast(:alone as boolean) or exists (select from core.checkpoints "
    "where tenant_id = cast(:tenant as uuid) and thread_id = :thread and checkpoint_ns = :ns and checkpoint_id = :id) "
    "on conflict (tenant_id, thread_id, checkpoint_ns, checkpoint_id, task_id, position) "
)

FIRST_TASK = 1
"""LangGraph counts from -1: the input as it came, 0: the input in its channels, 1: what the first node did."""

_KEPT = ("__interrupt__", "__resume__")
"""Channels (langgraph.checkpoint.serde.types) whose writes are needed to go on; an error is only tried again."""

_COLUMNS = "thread_id, checkpoint_ns, checkpoint_id, parent_id, kind, checkpoint, metadata"


class Checkpointer(BaseCheckpointSaver[int]):
    """Stores the steps of runs of one tenant.

    `transaction` opens the transaction of every write; it may raise Superseded to refuse it. `keep` stores a step
    instead, for a run with one task a step, whose effects are stored under keys of their own: then what a task has
    written need not be stored apart from the checkpoint that follows (interrupts are), a step is one statement that
    brings what is new (`functions.agent.parts`), and only the last checkpoint stays. What comes before the first task
    is not stored: it holds the input and nothing that was done. `fresh`: nothing of this thread can be stored yet, so
    nobody looks.
    """

    def __init__(
        self,
        tenant_id: UUID,
        transaction: Callable[[], AbstractContextManager[Session]] | None = None,
        *,
        keep: Callable[[Step], None] | None = None,
        fresh: bool = False,
    ) -> None:
        super().__init__()
        self._tenant_id = tenant_id
        self._transaction = transaction or (lambda: tenant_session(tenant_id))
        self._keep = keep
        self._fresh = fresh
        self._stored: dict[tuple[str, str], Stored] = {}
        self._put_off: dict[tuple[str, str], Callable[[], None]] = {}

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that the config names, or the thread's last one."""
        if self._fresh:
            return None
        return next(self.list(config, limit=1), None)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 # the name is LangGraph's
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Checkpoints, newest first, that match thread, namespace, id, metadata and `before`."""
        place = config["configurable"] if config else {}
        values = {
            "tenant": self._tenant_id,
            "thread": place.get("thread_id"),
            "ns": place.get("checkpoint_ns", "" if limit == 1 and config else None),
            "id": get_checkpoint_id(config) if config else None,
            "before": get_checkpoint_id(before) if before else None,
            "metadata": json.dumps(filter or {}),
            "limit": limit,
        }
        with tenant_session(self._tenant_id) as session:
            rows = session.execute(
                text(
                    f"select {_COLUMNS} from core.checkpoints where tenant_id = :tenant "  # constants
                    "and (cast(:thread as text) is null or thread_id = :thread) "
                    "and (cast(:ns as text) is null or checkpoint_ns = :ns) "
                    "and (cast(:id as text) is null or checkpoint_id = :id) "
                    "and (cast(:before as text) is null or checkpoint_id < :before) "
                    "and metadata @> cast(:metadata as jsonb) order by checkpoint_id desc limit :limit"
                ),
                values,
            ).all()
            found = [self._tuple(session, row) for row in rows]
        yield from found

    def _tuple(self, session: Session, row: Any) -> CheckpointTuple:
        writes = session.execute(
            text(
                "select task_id, channel, kind, value from core.checkpoint_writes where tenant_id = :tenant "
                "and thread_id = :thread and checkpoint_ns = :ns and checkpoint_id = :id "
                "order by task_path, task_id, position"
            ),
            {"tenant": self._tenant_id, "thread": row.thread_id, "ns": row.checkpoint_ns, "id": row.checkpoint_id},
        )
        return CheckpointTuple(
            config=_config(row.thread_id, row.checkpoint_ns, row.checkpoint_id),
            checkpoint=self._checkpoint(session, row),
            metadata=row.metadata,
            parent_config=_config(row.thread_id, row.checkpoint_ns, row.parent_id) if row.parent_id else None,
            pending_writes=[(w.task_id, w.channel, self.serde.loads_typed((w.kind, w.value))) for w in writes],
        )

    def _checkpoint(self, session: Session, row: Any) -> Checkpoint:
        """The whole checkpoint of a row; of one in parts it is remembered what is stored."""
        if row.kind != FORMAT:
            whole: Checkpoint = self.serde.loads_typed((row.kind, row.checkpoint))
            return whole
        parts = session.execute(
            text(
                "select channel, first, kind, value from core.checkpoint_parts where tenant_id = :tenant "
                "and thread_id = :thread and checkpoint_ns = :ns"
            ),
            {"tenant": self._tenant_id, "thread": row.thread_id, "ns": row.checkpoint_ns},
        )
        by_place = {(part.channel, part.first): (part.kind, part.value) for part in parts}
        checkpoint, channels = unite(self.serde, self.serde.loads_typed(("msgpack", row.checkpoint)), by_place)
        # Rows come newest first, and what this saver has stored itself is newer than any.
        self._stored.setdefault((row.thread_id, row.checkpoint_ns), Stored(channels=channels))
        return checkpoint

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint under its parent."""
        place = config["configurable"]
        ns = place.get("checkpoint_ns", "")
        about = json.dumps(get_checkpoint_metadata(config, metadata), ensure_ascii=False)
        parent = place.get("checkpoint_id")
        if self._keep is not None:
            store = partial(self._keep_step, place["thread_id"], ns, checkpoint, new_versions, parent, about)
            self._put_off.pop((place["thread_id"], ns), None)
            if metadata["step"] < FIRST_TASK:
                self._put_off[place["thread_id"], ns] = store
                return _config(place["thread_id"], ns, checkpoint["id"])
            store()
        else:
            kind, blob = self.serde.dumps_typed(checkpoint)
            values = {
                "tenant": self._tenant_id,
                "thread": place["thread_id"],
                "ns": ns,
                "id": checkpoint["id"],
                "parent": parent,
                "kind": kind,
                "checkpoint": blob,
                "metadata": about,
            }
            with self._transaction() as session:
                session.execute(_PUT, values)
        self._fresh = False
        return _config(place["thread_id"], ns, checkpoint["id"])

    def _keep_step(
        self,
        thread: str,
        ns: str,
        checkpoint: Checkpoint,
        new_versions: ChannelVersions,
        parent: str | None,
        about: str,
    ) -> None:
        assert self._keep is not None
        stored = self._stored.setdefault((thread, ns), Stored())
        divided = divide(self.serde, checkpoint, new_versions, stored)
        kind, blob = self.serde.dumps_typed(divided.body)
        # Before it is kept: tasks of the next step may write while this one is on its way.
        taken, stored.written = None if stored.written else stored.last, False
        form = FORMAT if divided.channels else kind
        self._keep(Step(thread, ns, checkpoint["id"], parent, form, blob, about, taken, divided.parts))
        stored.take(divided)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task of a step has written; errors and interrupts replace, ordinary writes stay as they are."""
        place = config["configurable"]
        replace = all(channel in WRITES_IDX_MAP for channel, _ in writes)
        if self._keep is not None and all(channel not in _KEPT for channel, _ in writes):
            return
        key = (place["thread_id"], place.get("checkpoint_ns", ""))
        if key in self._put_off:
            self._put_off.pop(key)()
        self._stored.setdefault(key, Stored()).written = True
        conflict = "do update set channel = excluded.channel, kind = excluded.kind, value = excluded.value"
        with self._transaction() as session:
            for position, (channel, value) in enumerate(writes):
                kind, blob = self.serde.dumps_typed(value)
                session.execute(
                    text(_WRITE + (conflict if replace else "do nothing")),
                    {
                        "tenant": self._tenant_id,
                        "thread": place["thread_id"],
                        "ns": place.get("checkpoint_ns", ""),
                        "id": place["checkpoint_id"],
                        "task": task_id,
                        "path": task_path,
                        "position": WRITES_IDX_MAP.get(channel, position),
                        "channel": channel,
                        "kind": kind,
                        "value": blob,
                        "alone": self._keep is None,
                    },
                )

    def delete_thread(self, thread_id: str) -> None:
        """Forget a thread."""
        with tenant_session(self._tenant_id) as session:
            for table in ("checkpoint_writes", "checkpoint_parts", "checkpoints"):
                session.execute(
                    text(f"delete from core.{table} where tenant_id = :tenant and thread_id = :thread"),
                    {"tenant": self._tenant_id, "thread": thread_id},
                )
        self._stored.clear()

    # The agent runs synchronously; these exist because the conformance suite and LangGraph's tools call them.
    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Like get_tuple."""
        return self.get_tuple(config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 # the name is LangGraph's
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Like list."""
        for found in self.list(config, filter=filter, before=before, limit=limit):
            yield found

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Like put."""
        return self.put(config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Like put_writes."""
        self.put_writes(config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        """Like delete_thread."""
        self.delete_thread(thread_id)


def _config(thread_id: str, checkpoint_ns: str, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns, "checkpoint_id": checkpoint_id}}
