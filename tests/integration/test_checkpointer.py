"""The agent's checkpoints: LangGraph's contract, plus what its own savers lack."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from sqlalchemy.orm import Session

from functions.agent.checkpointer import Checkpointer
from shared.database import tenant_session
from shared.errors import Superseded
from shared.tenants.directory import Principal


def test_the_conformance_suite_of_langgraph_passes(tenant: Principal) -> None:
    """Every base capability that LangGraph expects of a saver."""

    @checkpointer_test(name="noesis")
    async def saver() -> AsyncIterator[Checkpointer]:
        yield Checkpointer(tenant.tenant_id)

    report = asyncio.run(validate(saver))
    assert report.passed_all_base(), report.to_dict()


def test_a_thread_of_another_tenant_is_not_there(make_tenant: Callable[..., Principal]) -> None:
    """The same thread id in two tenants is two threads."""
    one, two = make_tenant(), make_tenant()
    config: RunnableConfig = {"configurable": {"thread_id": str(uuid4()), "checkpoint_ns": ""}}
    Checkpointer(one.tenant_id).put(config, empty_checkpoint(), {"step": 0}, {})
    assert Checkpointer(one.tenant_id).get_tuple(config) is not None
    assert Checkpointer(two.tenant_id).get_tuple(config) is None


def test_a_refused_write_leaves_nothing(tenant: Principal) -> None:
    """Who lost the run cannot store a step: the refusal comes in the same transaction."""

    @contextmanager
    def refuse() -> Iterator[Session]:
        with tenant_session(tenant.tenant_id) as session:
            yield session
            raise Superseded("somebody else holds the run")

    config: RunnableConfig = {"configurable": {"thread_id": str(uuid4()), "checkpoint_ns": ""}}
    saver = Checkpointer(tenant.tenant_id, transaction=refuse)
    with pytest.raises(Superseded):
        saver.put(config, empty_checkpoint(), {"step": 0}, {})
    assert saver.get_tuple(config) is None
