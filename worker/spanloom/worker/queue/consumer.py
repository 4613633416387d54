"""The consumer of node jobs: fetches them from Redis and keeps RQ's registries, one round trip for many jobs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import resources
from typing import Any

import structlog
from redis.exceptions import NoScriptError
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry
from rq.results import Result
from rq.serializers import JSONSerializer

from spanloom.engine.queue.node_queue import FAILURE_TTL_SECONDS, JOB_FUNCTION, NodeMessage, NodeQueue, rq_timestamp
from spanloom.engine.store.port import queue_key

__all__ = ["JobConsumer"]

_log = structlog.get_logger("spanloom.worker")
_URGENT_SECONDS = 0.02  #: how old a count of the more urgent lists may be
_WIP_SECONDS = 120  #: after which RQ's tools take a started job for abandoned, unless its worker renewed it
_HASH_SECONDS = 10  #: so long before that the job's hash expires, so that they find none to take for abandoned
_MOST_OWED = 10_000
_PUBLISH_SECONDS = 0.01  #: between publications of changes: an execution's nodes that end together are one change

_FETCH = resources.files("spanloom.worker.queue").joinpath("fetch.lua").read_text("utf-8")

_RENEW = resources.files("spanloom.worker.queue").joinpath("renew.lua").read_text("utf-8")
_RENEW_BATCH = 500

# One command for all channels: redis-py takes longer to send a command than Redis to publish.
_PUBLISH = "for number = 2, #ARGV do redis.call('publish', ARGV[number], ARGV[1]) end"


class JobConsumer:
    """The consumer of one worker: fetches node jobs, and reports their ends to RQ's registries."""

    def __init__(
        self, queue: NodeQueue, queues: Sequence[str], worker_name: str, *, renew_seconds: float = 5.0
    ) -> None:
        self._queue = queue
        self._redis = queue.redis
        self._keys = queue.keys
        self._worker_name = worker_name
        self.list_names = [queue.list_name(name, level) for name in queues for level in ("high", "normal", "low")]
        self._lists = [self._keys.queue(name) for name in self.list_names]
        self._script_keys = [*self._lists, *map(self._keys.started, self.list_names)]
        self._wake_key = self._keys.wake(worker_name)
        self._script: str | None = None
        self._wip_seconds = max(_WIP_SECONDS, int(3 * renew_seconds))
        self._lock = threading.Lock()
        # Sent with the next round trip to Redis: jobs that are over, by list; the number of nodes that ran; the
        # executions that changed; the rest.
        self._over: dict[str, list[str]] = {}
        self._ran = 0
        self._changed: deque[str] = deque(maxlen=_MOST_OWED)
        self._published = 0.0
        self._owed: list[Callable[[Any], None]] = []
        self._blocked = False
        self._started: dict[str, str] = {}  # job id -> list name, of jobs that run here now
        self._urgent: dict[str, tuple[float, bool]] = {}

    def fetch(self, count: int, block_seconds: float) -> list[NodeMessage]:
        """Take up to `count` node jobs, most urgent first; wait for the first one up to `block_seconds`.

        A job that is no valid node job is refused: RQ's tools show it as failed. Raises QueueUnavailable.
        """
        self._forget_much()
        with self._queue.breaker.guard():
            fetched = self._pop(count, 0, "")
            if not fetched and block_seconds > 0 and self._may_block():
                try:
                    popped = self._queue.blocking.blpop([self._wake_key, *self._lists], timeout=block_seconds)
                finally:
                    self._blocked = False
                if popped is not None and (key := popped[0].decode()) != self._wake_key:
                    fetched = self._pop(count, self._lists.index(key) + 1, popped[1].decode(errors="replace"))
        messages: list[NodeMessage] = []
        for list_number, raw_id, data in fetched:
            list_name, job_id = self.list_names[list_number - 1], raw_id.decode(errors="replace")
            try:
                messages.append(NodeMessage.parse(job_id, data, list_name))
                self._started[job_id] = list_name
            except ValueError as error:
                _log.warning("job_refused", job_id=job_id, queue=list_name, reason=str(error))
                self._defer_cleanup(partial(self._refuse, job_id=job_id, list_name=list_name, reason=str(error)))
        return messages

    def done(self, message: NodeMessage | None) -> None:
        """Count a recorded node run, and remove its job from RQ; None if it ran without a job."""
        if message is not None:
            self.discard(message)
        with self._lock:
            self._ran += 1

    def discard(self, message: NodeMessage) -> None:
        """Remove a job from RQ that was not run here: a duplicate, or one of a type without a handler here."""
        self._started.pop(message.job_id, None)
        with self._lock:
            self._over.setdefault(message.list_name, []).append(message.job_id)

    def failed(self, message: NodeMessage, reason: str) -> None:
        """List a node that failed for good among RQ's failed jobs; everything else is driven by the store."""
        self._started.pop(message.job_id, None)
        self._defer_cleanup(lambda pipe: self._show_failed(pipe, message, reason))

    def requeue(self, messages: Sequence[NodeMessage]) -> None:
        """Return fetched jobs to the front of their lists, in order. Raises QueueUnavailable."""
        self._return("lpush", messages[::-1])

    def requeue_last(self, messages: Sequence[NodeMessage]) -> None:
        """Return fetched jobs to the ends of their lists, for other workers. Raises QueueUnavailable."""
        self._return("rpush", messages)

    def _return(self, push: str, messages: Sequence[NodeMessage]) -> None:
        with self._queue.breaker.guard():
            pipeline = self._redis.pipeline(transaction=False)
            for message in messages:
                self._started.pop(message.job_id, None)
                key = self._keys.job(message.job_id)
                pipeline.zrem(self._keys.started(message.list_name), f"{message.job_id}:{self._worker_name}")
                pipeline.hset(key, "status", "queued")
                pipeline.persist(key)
                getattr(pipeline, push)(self._keys.queue(message.list_name), message.job_id)
            pipeline.execute()

    def announce(self, execution_id: str) -> None:
        """Publish the end of an execution, with the next round trip."""
        self._defer_cleanup(lambda pipe: pipe.publish(self._keys.ended_channel(execution_id), "ended"))

    def publish_changed(self, execution_ids: Iterable[str]) -> None:
        """Publish, with the next round trip, that these executions have changed."""
        self._changed.extend(execution_ids)  # without the lock: appending to a deque is atomic

    @property
    def has_changes(self) -> bool:
        """Whether changed executions wait for the next round trip."""
        return bool(self._changed)

    def flush(self) -> None:
        """Send the deferred commands to Redis. Raises QueueUnavailable; the store holds the state that is not sent."""
        with self._queue.breaker.guard():
            pipeline = self._redis.pipeline(transaction=False)
            self._flush_deferred(pipeline, all_changes=True)
            if len(pipeline):
                pipeline.execute()

    def flush_if_idle(self) -> None:
        """Flush if the fetching thread is blocked, and so will not flush soon."""
        if self._blocked:
            self.flush()

    def wake(self) -> None:
        """End a blocked fetch. Raises QueueUnavailable."""
        with self._queue.breaker.guard():
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.rpush(self._wake_key, "wake")
            pipeline.expire(self._wake_key, 10)
            pipeline.execute()

    def renew(self) -> None:
        """Renew the jobs that run here, so that RQ's tools do not take them for abandoned. Raises QueueUnavailable."""
        running = list(self._started.items())
        until = time.time() + self._wip_seconds
        for first in range(0, len(running), _RENEW_BATCH):
            batch = running[first : first + _RENEW_BATCH]
            keys = [key for job_id, name in batch for key in (self._keys.started(name), self._keys.job(job_id))]
            arguments = (self._worker_name, until, self._wip_seconds - _HASH_SECONDS, *(job_id for job_id, _ in batch))
            with self._queue.breaker.guard():
                self._redis.eval(_RENEW, len(keys), *keys, *arguments)

    def urgent_waits(self, queue: str, priority: str) -> bool:
        """Return whether a job waits on a more urgent list. Raises QueueUnavailable.

        The answer is 20 ms old at most, or 40 ms while another slot reads a new one.
        """
        name = f"{self._queue.namespace}.{queue_key(queue, priority)}"
        before = self._lists[: self.list_names.index(name)] if name in self.list_names else []
        if not before:
            return False
        looked, answer = self._urgent.get(name, (0.0, False))
        now = time.monotonic()
        if now - looked > _URGENT_SECONDS:
            self._urgent[name] = (now, answer)  # other slots go by the last answer meanwhile, instead of asking as well
            with self._queue.breaker.guard():
                pipeline = self._redis.pipeline(transaction=False)
                self._flush_deferred(pipeline)
                for key in before:
                    pipeline.llen(key)
                answer = any(pipeline.execute()[-len(before) :])
            self._urgent[name] = (time.monotonic(), answer)
        return answer

    def _pop(self, count: int, list_number: int, job_id: str) -> list[Any]:
        arguments = (
            count,
            self._worker_name,
            rq_timestamp(),
            time.time() + self._wip_seconds,
            list_number,
            job_id,
            self._wip_seconds - _HASH_SECONDS,
            self._keys.job(""),
        )
        pipeline = self._redis.pipeline(transaction=False)
        self._flush_deferred(pipeline)
        if self._script is None:
            self._script = self._redis.script_load(_FETCH)
        pipeline.evalsha(self._script, len(self._script_keys), *self._script_keys, *arguments)
        answer = pipeline.execute(raise_on_error=False)[-1]
        if isinstance(answer, NoScriptError):
            self._script = self._redis.script_load(_FETCH)
            answer = self._redis.evalsha(self._script, len(self._script_keys), *self._script_keys, *arguments)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]  # as the script returns it

    def _forget_much(self) -> None:
        """Drop the deferred commands if a long outage has gathered too many; only RQ's own registries need them."""
        with self._lock:
            if len(self._owed) + sum(map(len, self._over.values())) > _MOST_OWED:
                self._over, self._owed = {}, []

    def _may_block(self) -> bool:
        with self._lock:
            self._blocked = not (self._over or self._ran or self._owed)
            return self._blocked

    def _defer_cleanup(self, tell: Callable[[Any], None]) -> None:
        with self._lock:
            self._owed.append(tell)

    def _flush_deferred(self, pipeline: Any, *, all_changes: bool = False) -> None:
        with self._lock:
            over, self._over = self._over, {}
            ran, self._ran = self._ran, 0
            owed, self._owed = self._owed, []
            changed = self._take_changed(all_changes)
        for list_name, job_ids in over.items():
            pipeline.zrem(self._keys.started(list_name), *(f"{job_id}:{self._worker_name}" for job_id in job_ids))
            pipeline.delete(*map(self._keys.job, job_ids))
        if ran:
            pipeline.hincrby(self._keys.worker(self._worker_name), "successful_job_count", ran)
        if changed:
            pipeline.eval(_PUBLISH, 0, "changed", *map(self._keys.changed_channel, changed))
        for tell in owed:
            tell(pipeline)

    def _take_changed(self, all_changes: bool) -> set[str]:
        now = time.monotonic()
        if not (self._changed and (all_changes or now - self._published >= _PUBLISH_SECONDS)):
            return set()  # a later round trip takes them along, at last the notifier's
        self._published = now
        return {self._changed.popleft() for _ in range(len(self._changed))}

    def _refuse(self, pipe: Any, job_id: str, list_name: str, reason: str) -> None:
        now = datetime.now(UTC)
        key = self._keys.job(job_id)
        pipe.zrem(self._keys.started(list_name), f"{job_id}:{self._worker_name}")
        pipe.hset(key, mapping={"status": "failed", "ended_at": rq_timestamp(), "exc_info": reason})
        pipe.expire(key, FAILURE_TTL_SECONDS)
        pipe.zadd(self._keys.failed(list_name), {job_id: now.timestamp() + FAILURE_TTL_SECONDS})

    def _show_failed(self, pipe: Any, message: NodeMessage, reason: str) -> None:
        job = Job.create(
            JOB_FUNCTION,
            args=[message.as_dict()],
            id=message.job_id,
            connection=self._redis,
            serializer=JSONSerializer,
            origin=message.list_name,
            description=f"{message.node_type} for node {message.node_id} of execution {message.execution_id}",
            status=JobStatus.FAILED,
            result_ttl=0,
            failure_ttl=FAILURE_TTL_SECONDS,
        )
        job.worker_name = self._worker_name
        job.ended_at = datetime.now(UTC)
        FailedJobRegistry(message.list_name, connection=self._redis, serializer=JSONSerializer).add(
            job, ttl=FAILURE_TTL_SECONDS, exc_string=reason, pipeline=pipe
        )
        Result.create_failure(job, FAILURE_TTL_SECONDS, exc_string=reason, worker_name=self._worker_name, pipeline=pipe)
        pipe.zrem(self._keys.started(message.list_name), f"{message.job_id}:{self._worker_name}")
        pipe.hincrby(self._keys.worker(self._worker_name), "failed_job_count", 1)
