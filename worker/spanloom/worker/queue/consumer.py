"""The consumer of node jobs: fetches them from Redis and keeps RQ's registries, one round trip for many jobs."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import resources
from typing import Any

import structlog
from redis.exceptions import NoScriptError

from spanloom.engine.errors import QueueUnavailable
from spanloom.engine.queue.keys import RedisKeys
from spanloom.engine.queue.message import MOST_ID_BYTES, MOST_JOB_BYTES, NodeMessage
from spanloom.engine.queue.node_queue import NodeQueue, rq_timestamp
from spanloom.engine.queue.redis_refusals import WrongKeyType, bounded_text
from spanloom.engine.queue.side_lists import base_list, side_list
from spanloom.worker.queue.failed_jobs import FailedJobs

__all__ = ["JobConsumer"]

_log = structlog.get_logger("spanloom.worker")
_URGENT_SECONDS = 0.02  #: how old a count of the more urgent lists may be
_WIP_SECONDS = 120  #: after which RQ's tools take a started job for abandoned, unless its worker renewed it
_HASH_SECONDS = 10  #: so long before that the job's hash expires, so that they find none to take for abandoned
_MOST_OWED = 10_000
_PUBLISH_SECONDS = 0.01  #: between publications of changes: an execution's nodes that end together are one change

_FOLDER = resources.files("spanloom.worker.queue")
_FETCH = _FOLDER.joinpath("fetch.lua").read_text("utf-8")
_FETCH_SHA = hashlib.sha1(_FETCH.encode(), usedforsecurity=False).hexdigest()  # as Redis names scripts
_RENEW = _FOLDER.joinpath("renew.lua").read_text("utf-8")
_RENEW_BATCH = 500
_SET_ASIDE = _FOLDER.joinpath("set_aside.lua").read_text("utf-8")
_ASIDE_BATCH = 500  #: how many jobs behind one of an unknown type are looked through at once

# One command for all channels: redis-py takes longer to send a command than Redis to publish.
_PUBLISH = "for number = 2, #ARGV do redis.call('publish', ARGV[number], ARGV[1]) end"


_MOST_REFUSED, _REFUSED_SECONDS = 100, 60.0  #: so many refused jobs are logged as warnings in this time
_ODD = {-1: "its id is longer than any", -2: "what is kept under its id is no job"}


class _Served:
    """The lists that are fetched from, the most urgent first, and the arguments of the script that does it."""

    def __init__(self, keys: RedisKeys, list_names: Sequence[str], side_lists: Sequence[str]) -> None:
        beside: dict[str, list[str]] = {}
        for name in side_lists:
            beside.setdefault(base_list(name)[0], []).append(name)
        popped = [(name, base) for base in list_names for name in (*beside.get(base, ()), base)]
        self.side_lists = frozenset(side_lists)
        self.list_names = [base for _, base in popped]
        self.keys = [keys.queue(name) for name, _ in popped]
        self.script_keys = [*self.keys, *map(keys.started, self.list_names)]


class JobConsumer:
    """The consumer of one worker: fetches node jobs, and reports their ends to RQ's registries."""

    def __init__(
        self, queue: NodeQueue, queues: Sequence[str], worker_name: str, *, renew_seconds: float = 5.0
    ) -> None:
        self._queue = queue
        self._redis = queue.redis
        self._keys = queue.keys
        self._worker_name = worker_name
        served = [(name, level) for name in dict.fromkeys(queues) for level in ("high", "normal", "low")]
        self.list_names = [queue.list_name(name, level) for name, level in served]
        self._lists = [self._keys.queue(name) for name in self.list_names]
        self._served = _Served(self._keys, self.list_names, ())
        self._wake_key = self._keys.wake(worker_name)
        self._in_hand: tuple[str, bytes] | None = None  # a list and the job that was popped from it, but not started
        self._wip_seconds = max(_WIP_SECONDS, int(3 * renew_seconds))
        self._failed_jobs = FailedJobs(queue, worker_name)
        self._lock = threading.Lock()
        # Sent with the next round trip to Redis: jobs that are over, by list; the number of nodes that ran; the
        # executions that ended, and those that changed; the rest.
        self._over: dict[str, list[str]] = {}
        self._ran = 0
        self._ended: list[str] = []
        self._changed: deque[str] = deque(maxlen=_MOST_OWED)
        self._published = 0.0
        self._owed: list[Callable[[Any], None]] = []
        self._blocked = False
        self._empty = False  # the lists were so long empty as the last fetch has waited
        self._started: dict[str, str] = {}  # job id -> list name, of jobs that run here now
        self._refused, self._refused_since = 0, 0.0
        self._more_urgent = {one: self._lists[:number] for number, one in enumerate(served)}
        self._urgent: dict[tuple[str, str], tuple[float, bool]] = {}  # when they were looked at, and what was seen
        self._emptied = 0.0  # when a fetch last left nothing on any list

    def fetch(self, count: int, block_seconds: float) -> list[NodeMessage]:
        """Take up to `count` node jobs, most urgent first; wait for the first one up to `block_seconds`.

        A job that is no valid node job is refused: RQ's tools show it as failed, unless it is too large to be kept.
        Raises QueueUnavailable; a job that was popped meanwhile is kept for the next call.
        """
        self._forget_much()
        served = self._served
        # From a Redis that is out of memory jobs can still be taken: maybe it is they that fill it.
        with self._guard(anyway=self._queue.breaker.is_refusing):
            empty, self._empty = self._empty and self._in_hand is None and block_seconds > 0, False
            fetched = [] if empty and self._may_block() else self._pop(count, served)
            if not fetched and block_seconds > 0 and self._may_block():
                try:
                    popped = self._queue.blocking.blpop([self._wake_key, *served.keys], timeout=block_seconds)
                finally:
                    self._blocked = False
                self._empty = popped is None
                if popped is not None and (key := popped[0].decode()) != self._wake_key:
                    self._in_hand = (key, popped[1])
                    fetched = self._pop(count, served)
        messages: list[NodeMessage] = []
        for number, *found in fetched:
            if number == 0:
                self._displace()  # what was fetched comes before it
            elif (message := self._message(served.list_names[number - 1], *found)) is not None:
                messages.append(message)
        return messages

    def _message(self, list_name: str, raw_id: bytes, data: bytes | int) -> NodeMessage | None:
        job_id = raw_id.decode(errors="backslashreplace")
        if isinstance(data, int):
            reason = _ODD.get(data, f"its data has {data:,} bytes, which no node job has")
        else:
            try:
                message = NodeMessage.parse(job_id, data, list_name)
            except ValueError as error:
                reason = bounded_text(str(error))
                refuse = partial(self._failed_jobs.refuse, job_id=raw_id, list_name=list_name, reason=reason)
                self._defer_cleanup(refuse)
            else:
                self._started[job_id] = list_name
                return message
        self._log_refused(job_id=bounded_text(job_id), queue=list_name, reason=reason)
        return None

    def _log_refused(self, **fields: str) -> None:
        now = time.monotonic()
        if now - self._refused_since > _REFUSED_SECONDS:
            self._refused, self._refused_since = 0, now
        self._refused += 1
        (_log.warning if self._refused <= _MOST_REFUSED else _log.debug)("job_refused", **fields)

    def serve_side_lists(self, names: Iterable[str]) -> bool:
        """Serve these side lists as well from the next fetch on, each before its list; return whether any is new."""
        wanted = sorted(names)
        new = not self._served.side_lists.issuperset(wanted)
        if new or len(wanted) < len(self._served.side_lists):
            self._served = _Served(self._keys, self.list_names, wanted)
        return new

    def set_aside(self, messages: Sequence[NodeMessage], types: Sequence[str]) -> None:
        """Move fetched jobs to the side lists of their types, which are among `types`.

        Of the jobs behind them, up to some hundred, those of these types are moved as well. Raises QueueUnavailable.
        """
        for list_name in dict.fromkeys(message.list_name for message in messages):
            own = [message for message in messages if message.list_name == list_name]
            sides = [self._keys.queue(side_list(list_name, one)) for one in types]
            keys = [self._keys.queue(list_name), self._keys.started(list_name), self._keys.queues, *sides]
            pairs = [part for one in own for part in (types.index(one.node_type) + 1, one.job_id)]
            bounds = (_ASIDE_BATCH, MOST_ID_BYTES, MOST_JOB_BYTES)
            arguments = (self._keys.job(""), self._worker_name, *bounds, self._keys.queue(""), *types, *pairs)
            with self._guard():
                self._redis.eval(_SET_ASIDE, len(keys), *keys, *arguments)
            for message in own:
                self._started.pop(message.job_id, None)

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
        self._defer_cleanup(lambda pipe: self._failed_jobs.show(pipe, message, reason))

    def requeue(self, messages: Sequence[NodeMessage]) -> None:
        """Return fetched jobs to the front of their lists, in order. Raises QueueUnavailable."""
        self._return("lpush", messages[::-1])

    def requeue_last(self, messages: Sequence[NodeMessage]) -> None:
        """Return fetched jobs to the ends of their lists, for other workers. Raises QueueUnavailable."""
        self._return("rpush", messages)

    def _return(self, push: str, messages: Sequence[NodeMessage]) -> None:
        with self._guard():
            pipeline = self._redis.pipeline(transaction=False)
            if self._in_hand is not None:
                pipeline.lpush(*self._in_hand)
            for message in messages:
                self._started.pop(message.job_id, None)
                key = self._keys.job(message.job_id)
                pipeline.zrem(self._keys.started(message.list_name), f"{message.job_id}:{self._worker_name}")
                pipeline.hset(key, mapping={"status": "queued", "origin": message.list_name})
                pipeline.persist(key)
                getattr(pipeline, push)(self._keys.queue(message.list_name), message.job_id)
            pipeline.execute()
            self._in_hand = None

    def announce(self, execution_id: str) -> None:
        """Publish the end of an execution, with the next round trip."""
        with self._lock:
            self._ended.append(execution_id)

    def publish_changed(self, execution_ids: Iterable[str]) -> None:
        """Publish, with the next round trip, that these executions have changed."""
        self._changed.extend(execution_ids)  # without the lock: appending to a deque is atomic

    @property
    def has_changes(self) -> bool:
        """Whether changed executions wait for the next round trip."""
        return bool(self._changed)

    def flush(self) -> None:
        """Send the deferred commands to Redis. Raises QueueUnavailable; the store holds the state that is not sent."""
        with self._guard():
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
        with self._guard():
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
            with self._guard():
                self._redis.eval(_RENEW, len(keys), *keys, *arguments)

    def urgent_waits(self, queue: str, priority: str) -> bool:
        """Return whether a job waits on a more urgent list. Raises QueueUnavailable.

        The answer is 20 ms old at most, or 40 ms while another slot reads a new one. A fetch that left nothing is one.
        """
        name = (queue, priority)
        before = self._more_urgent.get(name)
        if not before or self._blocked:  # while it is blocked, the fetch takes such a job at once, for a free slot
            return False
        looked, answer = max(self._urgent.get(name, (0.0, False)), (self._emptied, False))
        now = time.monotonic()
        if now - looked > _URGENT_SECONDS:
            self._urgent[name] = (now, answer)  # other slots go by the last answer meanwhile, instead of asking as well
            with self._guard():
                pipeline = self._redis.pipeline(transaction=False)
                self._flush_deferred(pipeline)
                for key in before:
                    pipeline.llen(key)
                answer = any(pipeline.execute()[-len(before) :])
            self._urgent[name] = (time.monotonic(), answer)
        return answer

    def _pop(self, count: int, served: _Served) -> list[Any]:
        list_number, job_id = 0, b""
        pipeline = self._redis.pipeline(transaction=False)
        if self._in_hand is not None:
            key, job_id = self._in_hand
            list_number = served.keys.index(key) + 1 if key in served.keys else 0
            if not list_number:  # a side list that is served no more
                pipeline.lpush(key, job_id)
        arguments = (
            count,
            self._worker_name,
            rq_timestamp(),
            time.time() + self._wip_seconds,
            list_number,
            job_id,
            self._wip_seconds - _HASH_SECONDS,
            self._keys.job(""),
            MOST_ID_BYTES,
            MOST_JOB_BYTES,
        )
        self._flush_deferred(pipeline)
        looked = time.monotonic()
        pipeline.evalsha(_FETCH_SHA, len(served.script_keys), *served.script_keys, *arguments)
        answer = pipeline.execute(raise_on_error=False)[-1]
        if isinstance(answer, NoScriptError):  # eval keeps the script, and needs no other right
            answer = self._redis.eval(_FETCH, len(served.script_keys), *served.script_keys, *arguments)
        if isinstance(answer, Exception):
            raise answer
        self._in_hand = None
        if len(answer) < count:
            self._emptied = looked
        return answer  # type: ignore[no-any-return]  # as the script returns it

    def _forget_much(self) -> None:
        """Drop the deferred commands if a long outage has gathered too many; only RQ's own registries need them."""
        with self._lock:
            if len(self._owed) + len(self._ended) + sum(map(len, self._over.values())) > _MOST_OWED:
                self._over, self._owed, self._ended = {}, [], []

    def _may_block(self) -> bool:
        with self._lock:
            self._blocked = not (self._over or self._ran or self._owed or self._ended)
            return self._blocked

    def _defer_cleanup(self, tell: Callable[[Any], None]) -> None:
        with self._lock:
            self._owed.append(tell)

    def _flush_deferred(self, pipeline: Any, *, all_changes: bool = False) -> None:
        with self._lock:
            over, self._over = self._over, {}
            ran, self._ran = self._ran, 0
            owed, self._owed = self._owed, []
            ended, self._ended = self._ended, []
            changed = self._take_changed(all_changes).difference(ended)  # who follows one hears of its end, too
        for list_name, job_ids in over.items():
            pipeline.zrem(self._keys.started(list_name), *(f"{job_id}:{self._worker_name}" for job_id in job_ids))
            pipeline.delete(*map(self._keys.job, job_ids))
        if ran:
            pipeline.hincrby(self._keys.worker(self._worker_name), "successful_job_count", ran)
        for what, channel, ids in (
            ("ended", self._keys.ended_channel, ended),
            ("changed", self._keys.changed_channel, changed),
        ):
            if ids:
                pipeline.eval(_PUBLISH, 0, what, *map(channel, ids))
        for tell in owed:
            tell(pipeline)

    def _take_changed(self, all_changes: bool) -> set[str]:
        now = time.monotonic()
        if not (self._changed and (all_changes or now - self._published >= _PUBLISH_SECONDS)):
            return set()  # a later round trip takes them along, at last the notifier's
        self._published = now
        return {self._changed.popleft() for _ in range(len(self._changed))}

    @contextmanager
    def _guard(self, *, anyway: bool = False) -> Generator[None]:
        """Guard a block. A key of another type than ours is moved aside, so that the next call meets it no more."""
        try:
            with self._queue.breaker.guard(anyway=anyway):
                yield
        except WrongKeyType:
            self._displace()
            raise

    def _displace(self) -> None:
        expected = (
            dict.fromkeys(self._served.keys, "list")
            | dict.fromkeys((key for name in self.list_names for key in self._registries(name)), "zset")
            | {self._wake_key: "list", self._keys.worker(self._worker_name): "hash", self._keys.queues: "set"}
        )
        try:
            self._queue.displace(expected)
        except QueueUnavailable as error:
            _log.warning("keys_not_displaced", error=str(error))

    def _registries(self, list_name: str) -> tuple[str, str]:
        return self._keys.started(list_name), self._keys.failed(list_name)
