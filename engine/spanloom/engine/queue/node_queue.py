"""The queue: node jobs as RQ jobs on Redis, and the signals sent with them.

Pushing never depends on the data in Redis: the store decides the push, and duplicates end at the claim. A key that
holds something else than Spanloom keeps there costs itself: it is moved aside where it is in the way, and passed over
elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from redis.exceptions import ResponseError
from rq.queue import Queue
from rq.serializers import JSONSerializer

from spanloom.engine.errors import QueueUnavailable
from spanloom.engine.logs import Logger
from spanloom.engine.queue.circuit_breaker import CircuitBreaker
from spanloom.engine.queue.keys import RedisKeys
from spanloom.engine.queue.message import JOB_FUNCTION, MOST_ID_BYTES, MOST_JOB_BYTES, NodeMessage
from spanloom.engine.queue.redis_client import BLOCKING_SECONDS, redis_client, redis_location
from spanloom.engine.queue.redis_look import RedisLook
from spanloom.engine.queue.redis_probe import RedisProbe
from spanloom.engine.queue.redis_refusals import WrongKeyType, bounded_text, is_of_one_key, is_passing
from spanloom.engine.queue.side_lists import base_list
from spanloom.engine.store.port import queue_key
from spanloom.engine.store.requests import NodeJob

__all__ = ["NodeQueue", "rq_timestamp"]

_log = Logger("spanloom.engine")
FAILURE_TTL_SECONDS = 7 * 24 * 3600  #: how long RQ's tools show a failed node job
_PUSH_BATCH = 1000
_MOST_LISTS = 5000  # of a namespace; more are forged
_MOST_NAMED = 100  # odd keys that are named in the log

# The heads of the lists in KEYS: 0 for an empty one, 1 for one whose head is no node job, -1 for what is no list, else
# the id and the data of its first job. ARGV: what the keys of jobs begin with; the most bytes of an id and of data.
_HEADS = """
local heads = {}
for number, key in ipairs(KEYS) do
  local id = redis.pcall('LINDEX', key, 0)
  if type(id) == 'table' then
    heads[number] = -1
  elseif not id then
    heads[number] = 0
  else
    heads[number] = 1
    local data = #id <= tonumber(ARGV[2]) and redis.pcall('HGET', ARGV[1] .. id, 'data')
    if type(data) == 'string' and #data <= tonumber(ARGV[3]) then heads[number] = {id, data} end
  end
end
return heads
"""

# Moves KEYS[1] to KEYS[2], for ARGV[2] seconds, and returns its type, unless it is of the type ARGV[1]. The jobs of a
# list are lost with it: without the mark KEYS[3] all that is open is pushed again.
_DISPLACE = """
local found = redis.call('TYPE', KEYS[1]).ok
if found == 'none' or found == ARGV[1] then return false end
redis.call('RENAME', KEYS[1], KEYS[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
if ARGV[1] == 'list' then redis.call('DEL', KEYS[3]) end
return found
"""

_DROP_EMPTY = """
for number = 2, #KEYS do
  if redis.call('EXISTS', KEYS[number]) == 0 then redis.call('SREM', KEYS[1], KEYS[number]) end
end
"""


class NodeQueue:
    """The RQ queues of one namespace, one list for each queue and priority."""

    def __init__(self, redis: Any, namespace: str) -> None:
        """Take a URL or a client; connects at first use. Raises ConfigurationError."""
        self.redis: Any = redis_client(redis)  # Any: redis-py types answers as bytes | str; ours are bytes
        self.blocking: Any = redis_client(redis, answer_seconds=BLOCKING_SECONDS)  # for reads that wait for jobs
        self.namespace = namespace
        self.keys = RedisKeys.of(namespace)
        self._probe = RedisProbe(self.redis, self.keys, namespace)
        self.breaker = CircuitBreaker(self.redis, self._probe.check)
        self._is_list = re.compile(
            rf"{re.escape(namespace)}\.[A-Za-z0-9_-]{{1,100}}(\.high|\.low)?(@[A-Za-z0-9%._~-]+)?"
        ).fullmatch
        self._named: set[str | bytes] = set()
        self._known_keys: list[str] = []  # of the lists of which heads() has returned the heads last

    @property
    def location(self) -> str:
        """The address of Redis, without a password."""
        return redis_location(self.redis)

    def list_name(self, queue: str, priority: str) -> str:
        """Return the RQ queue name of a queue and priority: `{namespace}.{queue}[.{priority}]`."""
        return f"{self.namespace}.{queue_key(queue, priority)}"

    def rq_queue(self, list_name: str) -> Queue:
        """Return the RQ queue object, as RQ's own tools use it."""
        return Queue(list_name, connection=self.redis, serializer=JSONSerializer)

    def ping(self) -> None:
        """Return if Redis answers, else raise QueueUnavailable."""
        with self.breaker.guard():
            self.redis.ping()

    def check_for_worker(self) -> None:
        """Return if Redis does all that a worker needs, from now on also after an outage; else raise QueueUnavailable.

        The error names the commands that it refuses. A refusal that passes, such as that of a Redis that is out of
        memory, is logged only: a worker that runs jobs may be all that it needs.
        """
        self._probe.of_worker = True
        try:
            self.breaker.check()
        except QueueUnavailable as error:
            if not is_passing(error.__cause__):
                raise
            _log.warning("queue_unavailable", error=str(error))

    def push(self, jobs: Sequence[NodeJob], *, ended: Iterable[str] = (), changed: Iterable[str] = ()) -> None:
        """Push node jobs, and publish ended and changed executions, in one round trip per thousand jobs.

        Raises QueueUnavailable.
        """
        with self.breaker.guard():
            for start in range(0, max(len(jobs), 1), _PUSH_BATCH):
                batch = jobs[start : start + _PUSH_BATCH]
                pipeline = self.redis.pipeline(transaction=False)
                self._add_pushes(pipeline, batch)
                if start == 0:
                    for execution_id in ended:
                        pipeline.publish(self.keys.ended_channel(execution_id), "ended")
                    for execution_id in changed:
                        pipeline.publish(self.keys.changed_channel(execution_id), "changed")
                if len(pipeline):
                    self._push_batch(pipeline, batch)

    def _push_batch(self, pipeline: Any, batch: Sequence[NodeJob]) -> None:
        try:
            pipeline.execute()
        except ResponseError as error:
            if not is_of_one_key(error):
                raise
            expected = {self.keys.queues: "set"}
            for job in batch:
                message = NodeMessage.of(job, self.list_name(job.queue, job.priority))
                expected |= {self.keys.queue(message.list_name): "list", self.keys.job(message.job_id): "hash"}
            self.displace(expected)
            again = self.redis.pipeline(transaction=False)  # all of them: a job that comes twice ends at the claim
            self._add_pushes(again, batch)
            if len(again):
                again.execute()

    def displace(self, expected: Mapping[str, str]) -> None:
        """Move the keys that are of another type than expected aside, where they are kept for a week.

        If a list is among them, its jobs are lost: the next sweep starts a new epoch. Raises QueueUnavailable.
        """
        with self.breaker.guard():
            pipeline = self.redis.pipeline(transaction=False)
            for key, wanted in expected.items():
                keys = (key, self.keys.displaced(key), self.keys.epoch)
                pipeline.eval(_DISPLACE, len(keys), *keys, wanted, FAILURE_TTL_SECONDS)
            for (key, wanted), found in zip(expected.items(), pipeline.execute(), strict=True):
                if found is not None:
                    aside = bounded_text(self.keys.displaced(key))
                    what = {"key": bounded_text(key), "found": found.decode(), "expected": wanted, "moved_to": aside}
                    _log.warning("key_displaced", **what)

    def look(self, turn_seconds: float = 0.0) -> RedisLook:
        """Read all that check() of the epoch and heads() need, in one round trip. Raises QueueUnavailable.

        With `turn_seconds` it takes the turn to sweep the store for so long, unless another worker has it.
        """
        keys = self._known_keys
        with self.breaker.guard():
            pipeline = self.redis.pipeline(transaction=False)
            pipeline.get(self.keys.epoch)
            pipeline.info("server")
            pipeline.smembers(self.keys.queues)
            self._add_heads(pipeline, keys)
            if turn_seconds:
                pipeline.set(self.keys.sweep, "", nx=True, px=max(1, int(turn_seconds * 1000)))
            else:
                pipeline.ping()
            return RedisLook(pipeline.execute(raise_on_error=False), keys)

    def _add_heads(self, client: Any, keys: Sequence[str]) -> Any:
        return client.eval(_HEADS, len(keys), *keys, self.keys.job(""), MOST_ID_BYTES, MOST_JOB_BYTES)

    def known_lists(self, named: Iterable[str], look: RedisLook | None = None) -> list[str]:
        """Return the lists in `named` and every other list of the namespace in RQ's set, in order.

        A member of the set that is the name of no list is passed over, and so are all if they are thousands. Raises
        QueueUnavailable.
        """
        try:
            with self.breaker.guard():
                members = self.redis.smembers(self.keys.queues) if look is None else look.lists()
        except WrongKeyType:
            self._name_once(self.keys.queues, "no set")
            members = set()
        start = self.keys.queue("").encode()
        named = set(named)
        known = set(named)
        for member in members:
            name = member.removeprefix(start).decode(errors="replace") if member.startswith(start) else ""
            if self._is_list(name):
                known.add(name)
            elif name.startswith(f"{self.namespace}.") or not member.isascii():
                self._name_once(member, "no name of a list")
        return sorted(named) if len(known) > _MOST_LISTS else sorted(known)

    def heads(
        self,
        list_names: Iterable[str],
        *,
        seen: Callable[[Sequence[str]], object] = lambda names: None,
        look: RedisLook | None = None,
    ) -> dict[str, datetime | None]:
        """Return, by `queue_key`, the time at which the first job of each list was pushed; None for an empty list.

        Covers the lists in `list_names` and every other list of the namespace in RQ's set, and calls `seen` with all of
        them. The first job of a side list stands under `{queue_key}@{node type}`; an empty side list is left out. So is
        a key that is no list, and is moved aside if it is in `list_names`, and a list whose first job is none of ours:
        the next call will find another one. The answers in `look` are not read again. Raises QueueUnavailable.
        """
        own = set(list_names)
        names = self.known_lists(own, look)
        seen(names)
        if not names:
            return {}
        self._known_keys = keys = [self.keys.queue(name) for name in names]
        with self.breaker.guard():
            answers = None if look is None else look.heads(keys)
            if answers is None:
                answers = self._add_heads(self.redis, keys)
        heads: dict[str, datetime | None] = {}
        for name, key, answer in zip(names, keys, answers, strict=True):
            base, tag = base_list(name)
            heads_key = base.removeprefix(f"{self.namespace}.")
            if isinstance(answer, list):
                try:
                    message = NodeMessage.parse(answer[0].decode(errors="replace"), answer[1], name)
                except ValueError:
                    continue
                heads_key = f"{heads_key}@{message.node_type}" if tag else heads_key
                heads[heads_key] = datetime.fromtimestamp(message.pushed_at, UTC)
            elif answer == 0 and not tag:
                heads[heads_key] = None
            elif answer < 0 and name in own:
                self.displace({key: "list"})  # those who wait for its jobs meet it only once they wait anew
            elif answer < 0:
                self._name_once(key, "no list")
        return heads

    def drop_empty_side_lists(self) -> None:
        """Remove the empty side lists of the namespace from RQ's set. Raises QueueUnavailable."""
        if side := [self.keys.queue(name) for name in self.known_lists(()) if base_list(name)[1]]:
            with self.breaker.guard():
                self.redis.eval(_DROP_EMPTY, len(side) + 1, self.keys.queues, *side)

    def _name_once(self, key: str | bytes, what: str) -> None:
        if key not in self._named and len(self._named) < _MOST_NAMED:
            self._named.add(key)
            _log.warning("odd_key_in_redis", key=bounded_text(key), it_is=what)

    def depths(self, list_names: Sequence[str]) -> dict[str, int]:
        """Return the number of jobs that wait on each of these lists that is one. Raises QueueUnavailable."""
        with self.breaker.guard():
            pipeline = self.redis.pipeline(transaction=False)
            for name in list_names:
                pipeline.llen(self.keys.queue(name))
            answers = pipeline.execute(raise_on_error=False)
        return {name: depth for name, depth in zip(list_names, answers, strict=True) if isinstance(depth, int)}

    def close(self) -> None:
        """Close the connections; the queue opens others at its next use."""
        self.redis.close()
        self.blocking.close()

    def _add_pushes(self, pipeline: Any, jobs: Sequence[NodeJob]) -> None:
        now = rq_timestamp()
        lists: dict[str, list[str]] = {}
        for job in jobs:
            message = NodeMessage.of(job, self.list_name(job.queue, job.priority))
            pipeline.hset(self.keys.job(message.job_id), mapping=_job_hash(message, now))
            lists.setdefault(message.list_name, []).append(message.job_id)
        for list_name, job_ids in lists.items():
            pipeline.sadd(self.keys.queues, self.keys.queue(list_name))
            pipeline.rpush(self.keys.queue(list_name), *job_ids)


def rq_timestamp() -> str:
    """Return the current time as RQ writes it: `rq.utils.utcformat`, which takes four times as long."""
    return f"{datetime.now(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def _job_hash(message: NodeMessage, now: str) -> dict[str, Any]:
    # The fields that rq.Job.save writes, without its 60 µs; a test reads them back through rq.Job and compares.
    return {
        "created_at": now,
        "enqueued_at": now,
        "data": json.dumps([JOB_FUNCTION, None, [message.as_dict()], {}]),
        "origin": message.list_name,
        "description": message.description,
        "timeout": -1,
        "result_ttl": 0,
        "failure_ttl": FAILURE_TTL_SECONDS,
        "status": "queued",
    }
