"""The protobuf classes of Pub/Sub and Cloud Tasks, without the client libraries around them.

`import google.pubsub_v1` brings clients, transports and google-auth along: 25 MB and 0.7 s for a server that only needs
the message classes. So the package is entered with an empty `__init__` for the length of the import; whoever imports
the real one later gets it, over the same classes.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

# Generated message classes carry no types of their own.
Pb = Any


@contextmanager
def _without_clients(package: str) -> Iterator[None]:
    spec = None if package in sys.modules else find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        yield
        return
    bare = ModuleType(package)
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = bare
    try:
        yield
    finally:
        del sys.modules[package]


with _without_clients("google.pubsub_v1"):
    _pubsub = importlib.import_module("google.pubsub_v1.types.pubsub")
with _without_clients("google.cloud.tasks_v2"):
    _cloudtasks = importlib.import_module("google.cloud.tasks_v2.types.cloudtasks")
    _task = importlib.import_module("google.cloud.tasks_v2.types.task")
    _queue = importlib.import_module("google.cloud.tasks_v2.types.queue")


def pubsub(name: str) -> Pb:
    """The raw protobuf class of a message of google.pubsub.v1, by its name."""
    return getattr(_pubsub, name).pb()


def tasks(name: str) -> Pb:
    """The raw protobuf class of a message of google.cloud.tasks.v2, by its name."""
    for module in (_cloudtasks, _task, _queue):
        if hasattr(module, name):
            return getattr(module, name).pb()
    raise LookupError(name)


PubsubMessage = pubsub("PubsubMessage")
Topic = pubsub("Topic")
Subscription = pubsub("Subscription")
Queue = tasks("Queue")
Task = tasks("Task")
Empty: Pb = importlib.import_module("google.protobuf.empty_pb2").Empty
