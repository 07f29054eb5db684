"""One queue at work: takes due tasks at the queue's rate, sends them, and again after a backoff."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from local.bus.clock import Clock
from local.bus.outbound import Answer, Broken, Sender, Unreachable
from local.bus.store import Operation, Store
from local.bus.tokens import Tokens
from local.bus.wire import Pb, Queue, Task

log = logging.getLogger(__name__)

# Threads of one queue, whatever concurrency it allows: a laptop does not answer a thousand requests at once.
_THREADS = 50
# Headers a task cannot set (reference: HttpRequest.headers).
_REPLACED = frozenset({"host", "content-length", "user-agent", "authorization"})
_REPLACED_PREFIXES = ("x-google-", "x-appengine-", "x-cloudtasks-")
_METHODS = {0: "POST", 1: "POST", 2: "GET", 3: "HEAD", 4: "PUT", 5: "DELETE", 6: "PATCH", 7: "OPTIONS"}
# google.rpc.Code of an attempt's outcome, as far as a task's status tells them apart.
_OK, _UNKNOWN, _DEADLINE = 0, 2, 4


class Dispatcher:
    """Dispatches the tasks of one queue. Every public method may be called from any thread."""

    def __init__(self, config: Pb, store: Store, clock: Clock, tokens: Tokens) -> None:
        self.config = config
        self._store, self._clock, self._tokens = store, clock, tokens
        self._lock = threading.Lock()
        self._running: set[str] = set()
        self._allowance = self._burst()
        self._refilled = clock.now()
        self._wake = float("inf")
        self._closed = False
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="task")

    def close(self) -> None:
        """Dispatch nothing more; what is under way may end."""
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def pump(self) -> None:
        """Dispatch what is due, as far as rate and concurrency allow, and wake up for the rest."""
        with self._lock:
            if self._closed or self.config.state == Queue.PAUSED:
                return
            now = self._clock.now()
            rate = self.config.rate_limits.max_dispatches_per_second
            self._allowance = min(self._burst(), self._allowance + max(0.0, now - self._refilled) * rate)
            self._refilled = now
            free = min(self.config.rate_limits.max_concurrent_dispatches, _THREADS) - len(self._running)
            for name, due in self._waiting(free + 1):
                if free <= 0:
                    return  # whatever ends next pumps again
                if due > now:
                    self._wake_at(due)
                    return
                if self._allowance < 1:
                    self._wake_at(now + (1 - self._allowance) / rate)
                    return
                self._allowance -= 1
                free -= 1
                self._begin(name)

    def force(self, name: str) -> None:
        """Dispatch one task now, whatever rate, concurrency, schedule time and a pause say."""
        with self._lock:
            if not self._closed and name not in self._running:
                self._begin(name)

    def _burst(self) -> float:
        # Output only in the cloud, "generally at least equal to max_dispatches_per_second"; one of a fifth keeps a
        # stampede of due tasks at the rate that was asked for.
        return float(max(1.0, self.config.rate_limits.max_dispatches_per_second / 5))

    def _waiting(self, limit: int) -> list[tuple[str, float]]:
        """At least the next `limit` tasks that are not under way, by the time they are due."""
        rows: list[tuple[str, float]] = [
            (row[0], row[1])
            for row in self._store.rows(
                "SELECT name, due FROM tasks WHERE queue = ? AND ended IS NULL ORDER BY due LIMIT ?",
                self.config.name,
                limit + len(self._running),
            )
        ]
        return [row for row in rows if row[0] not in self._running]

    def _wake_at(self, when: float) -> None:
        if when < self._wake:
            self._wake = when
            self._clock.call_at(when, lambda: self._tick(when))

    def _tick(self, scheduled: float) -> None:
        with self._lock:
            if scheduled != self._wake:
                return  # an earlier wake-up took its place
            self._wake = float("inf")
        self.pump()

    def _begin(self, name: str) -> None:
        self._running.add(name)
        self._pool.submit(self._attempt, name)

    def _attempt(self, name: str) -> None:
        try:
            rows = self._store.rows("SELECT body FROM tasks WHERE name = ? AND ended IS NULL", name)
            if rows:
                task = Task.FromString(rows[0][0])
                self._record(task, *self._send(task))
        finally:
            with self._lock:
                self._running.discard(name)
        self.pump()

    def _send(self, task: Pb) -> tuple[Answer | None, str]:
        """The answer of the target, or why there is none."""
        request = task.http_request
        deadline = task.dispatch_deadline.seconds + task.dispatch_deadline.nanos / 1e9
        task.dispatch_count += 1
        task.last_attempt.Clear()
        task.last_attempt.schedule_time.CopyFrom(task.schedule_time)
        task.last_attempt.dispatch_time.FromNanoseconds(int(self._clock.now() * 1e9))
        if task.dispatch_count == 1:
            task.first_attempt.dispatch_time.CopyFrom(task.last_attempt.dispatch_time)
        sender = Sender(request.url)
        try:
            answer = sender.send(_METHODS[request.http_method], self._headers(task), request.body, deadline)
        except (Unreachable, Broken) as error:
            task.last_attempt.response_status.code = _DEADLINE
            return None, str(error)
        finally:
            sender.close()
        task.response_count += 1
        task.last_attempt.response_time.FromNanoseconds(int(self._clock.now() * 1e9))
        task.last_attempt.response_status.code = _OK if 200 <= answer.status < 300 else _UNKNOWN
        task.last_attempt.response_status.message = f"HTTP status code {answer.status}"
        return answer, f"answered {answer.status}"

    def _headers(self, task: Pb) -> dict[str, str]:
        request = task.http_request
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in _REPLACED and not name.lower().startswith(_REPLACED_PREFIXES)
        }
        retries = task.dispatch_count - 1
        headers |= {
            "User-Agent": "Google-Cloud-Tasks",
            "X-CloudTasks-QueueName": self.config.name.rpartition("/")[2],
            "X-CloudTasks-TaskName": task.name.rpartition("/")[2],
            "X-CloudTasks-TaskRetryCount": str(retries),
            "X-CloudTasks-TaskExecutionCount": str(task.response_count),
            "X-CloudTasks-TaskETA": f"{task.schedule_time.ToNanoseconds() / 1e9:.6f}",
        }
        if request.HasField("oidc_token"):
            token = request.oidc_token
            headers["Authorization"] = self._tokens.bearer(token.audience or request.url, token.service_account_email)
        elif request.HasField("oauth_token"):
            # The cloud sends an opaque access token here; ours can be verified, with the scope as its audience.
            headers["Authorization"] = self._tokens.bearer(
                request.oauth_token.scope or "https://www.googleapis.com/auth/cloud-platform",
                request.oauth_token.service_account_email,
            )
        return headers

    def _record(self, task: Pb, answer: Answer | None, why: str) -> None:
        now = self._clock.now()
        if answer is not None and 200 <= answer.status < 300:
            self._store.submit(end_task(task.name, now)).result()
        elif self._exhausted(task, now):
            log.warning("%s: given up after %s attempts (%s)", task.name, task.dispatch_count, why)
            self._store.submit(end_task(task.name, now)).result()
        else:
            due = now + max(self._backoff(task.dispatch_count), _retry_after(answer))
            task.schedule_time.FromNanoseconds(int(due * 1e9))
            self._store.submit(postpone_task(task, due)).result()

    def _exhausted(self, task: Pb, now: float) -> bool:
        """Both limits must be passed where both are set (reference: RetryConfig.max_retry_duration)."""
        config = self.config.retry_config
        longest: int = config.max_retry_duration.seconds
        attempts: bool = 0 < config.max_attempts <= task.dispatch_count
        age: float = now - task.first_attempt.dispatch_time.ToNanoseconds() / 1e9
        if not longest:
            return attempts
        return age >= longest and (attempts or config.max_attempts < 0)

    def _backoff(self, failures: int) -> float:
        """Doubles `max_doublings` times, then grows by the last step (reference: RetryConfig.max_doublings)."""
        config = self.config.retry_config
        minimum = config.min_backoff.ToNanoseconds() / 1e9
        doublings, step = config.max_doublings, failures - 1
        wait = minimum * 2.0**step if step <= doublings else minimum * 2.0**doublings * (step - doublings + 1)
        return float(min(config.max_backoff.ToNanoseconds() / 1e9, wait))


def _retry_after(answer: Answer | None) -> float:
    """Seconds a busy target asked for, 0 without a number; at most an hour."""
    if answer is None or answer.status not in (429, 503):
        return 0.0
    value = _header(answer.headers, "retry-after")
    return min(3600.0, float(value)) if value.isascii() and value.isdigit() else 0.0


def _header(headers: Mapping[str, str], name: str) -> str:
    return headers.get(name, "").strip()


def end_task(name: str, now: float) -> Operation[int]:
    """The task is done or given up: only its name stays, so that it is not taken again too soon."""

    def operation(connection: sqlite3.Connection) -> int:
        return connection.execute(
            "UPDATE tasks SET ended = ?, body = NULL WHERE name = ? AND ended IS NULL", (now, name)
        ).rowcount

    return operation


def postpone_task(task: Pb, due: float) -> Operation[int]:
    """The task is tried again at `due`."""

    def operation(connection: sqlite3.Connection) -> int:
        return connection.execute(
            "UPDATE tasks SET due = ?, body = ? WHERE name = ? AND ended IS NULL",
            (due, task.SerializeToString(), task.name),
        ).rowcount

    return operation
