"""google.cloud.tasks.v2 over gRPC: queues and the tasks in them, for the official client unchanged."""

from __future__ import annotations

import re
import sqlite3
import threading
import uuid

import grpc

from local.bus.clock import Clock
from local.bus.dispatch import Dispatcher, end_task
from local.bus.pubsub import page, unary
from local.bus.refusal import Refused, check_name, check_url, exists, invalid, not_found
from local.bus.store import Operation, Store
from local.bus.tokens import Tokens
from local.bus.wire import Empty, Pb, Queue, Task, tasks

# Documented defaults and limits (docs, "Quotas and limits"; reference: RateLimits, RetryConfig, Task).
_RATE, _CONCURRENCY, _ATTEMPTS, _DOUBLINGS = 500.0, 1000, 100, 16
_MINIMUM_BACKOFF_MS, _MAXIMUM_BACKOFF_MS = 100, 3_600_000
_MOST_RATE, _MOST_CONCURRENCY = 500.0, 5000
_TASK_BYTES, _AHEAD, _DEADLINE, _DEADLINES = 1_048_576, 30 * 86400, 600, range(15, 1801)
# A name is free again this long after its task ended (the cloud: "up to 24 hours", nothing may count on less).
_TOMBSTONE = 3600.0
_FULL = 2
_WITH_BODY = frozenset({0, 1, 4, 6})
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")


class Tasks:
    """google.cloud.tasks.v2.CloudTasks, as far as the product needs it. Methods raise Refused."""

    def __init__(self, store: Store, clock: Clock, tokens: Tokens) -> None:
        self._store, self._clock, self._tokens = store, clock, tokens
        self._lock = threading.Lock()
        self._dispatchers: dict[str, Dispatcher] = {}
        for name, config in store.rows("SELECT name, config FROM queues"):
            self._dispatchers[name] = Dispatcher(Queue.FromString(config), store, clock, tokens)

    def start(self) -> None:
        """Begin to dispatch."""
        for dispatcher in list(self._dispatchers.values()):
            dispatcher.pump()
        self._purge()

    def stop(self) -> None:
        """Dispatch nothing more."""
        for dispatcher in list(self._dispatchers.values()):
            dispatcher.close()

    def handler(self) -> grpc.GenericRpcHandler:
        """The methods for a gRPC server."""
        methods = {
            "CreateQueue": unary(self._create_queue, tasks("CreateQueueRequest"), Queue),
            "GetQueue": unary(lambda r: self._dispatcher(r.name).config, tasks("GetQueueRequest"), Queue),
            "ListQueues": unary(self._list_queues, tasks("ListQueuesRequest"), tasks("ListQueuesResponse")),
            "DeleteQueue": unary(self._delete_queue, tasks("DeleteQueueRequest"), Empty),
            "PurgeQueue": unary(self._purge_queue, tasks("PurgeQueueRequest"), Queue),
            "PauseQueue": unary(lambda r: self._set_state(r.name, Queue.PAUSED), tasks("PauseQueueRequest"), Queue),
            "ResumeQueue": unary(lambda r: self._set_state(r.name, Queue.RUNNING), tasks("ResumeQueueRequest"), Queue),
            "CreateTask": unary(self._create_task, tasks("CreateTaskRequest"), Task),
            "GetTask": unary(lambda r: _view(self._task(r.name), r), tasks("GetTaskRequest"), Task),
            "ListTasks": unary(self._list_tasks, tasks("ListTasksRequest"), tasks("ListTasksResponse")),
            "DeleteTask": unary(self._delete_task, tasks("DeleteTaskRequest"), Empty),
            "RunTask": unary(self._run_task, tasks("RunTaskRequest"), Task),
        }
        return grpc.method_handlers_generic_handler("google.cloud.tasks.v2.CloudTasks", methods)

    # -- queues

    def declare(self, config: Pb) -> None:
        """Create or update a queue of the topology; a pause survives."""
        with self._lock:
            known = self._dispatchers.get(config.name)
            if known is not None:
                config.state = known.config.state
            self._put_queue(config, declared=True)

    def waiting(self, queue: str) -> int:
        """How many tasks of a queue have not ended."""
        rows = self._store.rows("SELECT count(*) FROM tasks WHERE queue = ? AND ended IS NULL", queue)
        return int(rows[0][0])

    def status(self) -> dict[str, dict[str, int]]:
        """Tasks per queue."""
        return {name: {"tasks": self.waiting(name)} for name in sorted(self._dispatchers)}

    def delete_queue(self, name: str) -> None:
        """Forget a queue and its tasks."""
        with self._lock:
            self._dispatcher(name).close()
            del self._dispatchers[name]

            def operation(connection: sqlite3.Connection) -> None:
                connection.execute("DELETE FROM queues WHERE name = ?", (name,))
                connection.execute("DELETE FROM tasks WHERE queue = ?", (name,))

            self._store.submit(operation).result()

    def _put_queue(self, config: Pb, *, declared: bool) -> None:
        _complete(config)
        self._do(
            "INSERT INTO queues VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET config = excluded.config",
            config.name,
            config.SerializeToString(),
            declared,
        )
        if config.name in self._dispatchers:
            self._dispatchers[config.name].config = config
        else:
            self._dispatchers[config.name] = Dispatcher(config, self._store, self._clock, self._tokens)

    def _dispatcher(self, name: str) -> Dispatcher:
        dispatcher = self._dispatchers.get(name)
        if dispatcher is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, "Queue does not exist.")
        return dispatcher

    def _create_queue(self, request: Pb) -> Pb:
        check_name("queue", request.queue.name)
        if not request.queue.name.startswith(f"{request.parent}/queues/"):
            raise invalid("The queue's name does not belong to the parent.")
        with self._lock:
            if request.queue.name in self._dispatchers:
                raise exists(request.queue.name)
            self._put_queue(request.queue, declared=False)
        return request.queue

    def _list_queues(self, request: Pb) -> Pb:
        queues = [self._dispatchers[name].config for name in sorted(self._dispatchers)]
        ours = [queue for queue in queues if queue.name.startswith(f"{request.parent}/")]
        found, token = page(ours, request, lambda queue: queue.name)
        return tasks("ListQueuesResponse")(queues=found, next_page_token=token)

    def _delete_queue(self, request: Pb) -> Pb:
        self.delete_queue(request.name)
        return Empty()

    def _set_state(self, name: str, state: int) -> Pb:
        dispatcher = self._dispatcher(name)
        config = Queue()
        config.CopyFrom(dispatcher.config)
        config.state = state
        self._do("UPDATE queues SET config = ? WHERE name = ?", config.SerializeToString(), name)
        dispatcher.config = config
        dispatcher.pump()
        return config

    def _purge_queue(self, request: Pb) -> Pb:
        config = self._dispatcher(request.name).config
        now = self._clock.now()
        self._do("UPDATE tasks SET ended = ?, body = NULL WHERE queue = ? AND ended IS NULL", now, request.name)
        return config

    # -- tasks

    def _create_task(self, request: Pb) -> Pb:
        dispatcher = self._dispatcher(request.parent)
        task, now = request.task, self._clock.now()
        task.name = task.name or f"{request.parent}/tasks/{uuid.uuid4().int}"
        check_name("task", task.name)
        if not task.name.startswith(f"{request.parent}/tasks/"):
            raise invalid("The task's name does not belong to the queue.")
        due = _check_task(task, now)
        self._store.submit(_insert_task(task, request.parent, due, now)).result()
        dispatcher.pump()
        return _view(task, request)

    def _task(self, name: str) -> Pb:
        check_name("task", name)
        rows = self._store.rows("SELECT body FROM tasks WHERE name = ? AND ended IS NULL", name)
        if not rows:
            raise not_found(name)
        return Task.FromString(rows[0][0])

    def _list_tasks(self, request: Pb) -> Pb:
        self._dispatcher(request.parent)
        size = min(request.page_size or 1000, 1000)
        rows = self._store.rows(
            "SELECT body FROM tasks WHERE queue = ? AND ended IS NULL AND name > ? ORDER BY name LIMIT ?",
            request.parent,
            request.page_token,
            size + 1,
        )
        found = [_view(Task.FromString(body), request) for (body,) in rows]
        token = found[size - 1].name if len(found) > size else ""
        return tasks("ListTasksResponse")(tasks=found[:size], next_page_token=token)

    def _delete_task(self, request: Pb) -> Pb:
        if not self._store.submit(end_task(self._task(request.name).name, self._clock.now())).result():
            raise not_found(request.name)
        return Empty()

    def _run_task(self, request: Pb) -> Pb:
        task = self._task(request.name)
        self._dispatcher(task.name.partition("/tasks/")[0]).force(task.name)
        return _view(task, request)

    def _purge(self) -> None:
        now = self._clock.now()
        self._store.later(
            lambda connection: connection.execute("DELETE FROM tasks WHERE ended < ?", (now - _TOMBSTONE,))
        )
        self._clock.call_at(now + _TOMBSTONE / 4, self._purge)

    def _do(self, sql: str, *parameters: object) -> None:
        self._store.submit(lambda connection: connection.execute(sql, parameters).rowcount).result()


def _insert_task(task: Pb, queue: str, due: float, now: float) -> Operation[None]:
    """Store a task; raises ALREADY_EXISTS while one of this name waits, or ended a short time ago."""
    body = task.SerializeToString()

    def operation(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM tasks WHERE name = ? AND ended < ?", (task.name, now - _TOMBSTONE))
        inserted = connection.execute(
            "INSERT INTO tasks (name, queue, due, body) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO NOTHING",
            (task.name, queue, due, body),
        )
        if not inserted.rowcount:
            raise exists(task.name)

    return operation


def _check_task(task: Pb, now: float) -> float:
    """When the task is due; output-only fields and defaults are set. Raises INVALID_ARGUMENT."""
    request = task.http_request
    if not task.HasField("http_request"):
        raise invalid("Task.http_request is required: the local bus serves HTTP targets only.")
    check_url(request.url)
    if request.body and request.http_method not in _WITH_BODY:
        raise invalid("HttpRequest.body is only allowed for POST, PUT and PATCH.")
    for name, value in request.headers.items():
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise invalid(f"HttpRequest.headers: {name[:100]!r} is not a valid header.")
    due = task.schedule_time.ToNanoseconds() / 1e9 if task.HasField("schedule_time") else now
    if due > now + _AHEAD:
        raise invalid("Task.schedule_time must be within the next 30 days.")
    if not task.HasField("dispatch_deadline"):
        task.dispatch_deadline.seconds = _DEADLINE
    if task.dispatch_deadline.seconds not in _DEADLINES:
        raise invalid("Task.dispatch_deadline must be between 15 seconds and 30 minutes.")
    due = max(due, now)
    task.schedule_time.FromNanoseconds(int(due * 1e9))
    task.create_time.FromNanoseconds(int(now) * 10**9)
    for output_only in ("dispatch_count", "response_count", "first_attempt", "last_attempt", "view"):
        task.ClearField(output_only)
    if task.ByteSize() > _TASK_BYTES:
        raise invalid(f"A task holds at most {_TASK_BYTES} bytes.")
    return due


def _complete(queue: Pb) -> None:
    """Fill the defaults in; raises INVALID_ARGUMENT for limits the cloud does not allow."""
    rates, retry = queue.rate_limits, queue.retry_config
    rates.max_dispatches_per_second = rates.max_dispatches_per_second or _RATE
    rates.max_concurrent_dispatches = rates.max_concurrent_dispatches or _CONCURRENCY
    if not 0 < rates.max_dispatches_per_second <= _MOST_RATE:
        raise invalid("max_dispatches_per_second must be above 0 and at most 500.")
    if not 0 < rates.max_concurrent_dispatches <= _MOST_CONCURRENCY:
        raise invalid("max_concurrent_dispatches must be between 1 and 5000.")
    rates.max_burst_size = max(1, int(rates.max_dispatches_per_second / 5))
    retry.max_attempts = retry.max_attempts or _ATTEMPTS
    retry.max_doublings = retry.max_doublings or _DOUBLINGS
    if not retry.HasField("min_backoff"):
        retry.min_backoff.FromMilliseconds(_MINIMUM_BACKOFF_MS)
    if not retry.HasField("max_backoff"):
        retry.max_backoff.FromMilliseconds(_MAXIMUM_BACKOFF_MS)
    queue.state = queue.state or Queue.RUNNING


def _view(task: Pb, request: Pb) -> Pb:
    """The task as a caller asked for it: without its body unless the full view was wanted."""
    task.view = request.response_view or 1
    if task.view != _FULL:
        task.http_request.ClearField("body")
    return task
