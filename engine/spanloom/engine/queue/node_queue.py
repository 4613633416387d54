"""The queue: node jobs as RQ jobs on Redis, the form of their messages, and the signals sent with them.

Pushing never depends on the data in Redis: the store decides the push, and duplicates end at the claim.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rq.queue import Queue
from rq.serializers import JSONSerializer

from spanloom.engine.queue.circuit_breaker import CircuitBreaker
from spanloom.engine.queue.keys import RedisKeys
from spanloom.engine.queue.redis_client import BLOCKING_SECONDS, redis_client, redis_location
from spanloom.engine.store.port import queue_key
from spanloom.engine.store.requests import NodeJob, NodeKey

__all__ = ["JOB_FORMAT", "JOB_FUNCTION", "NodeMessage", "NodeQueue", "rq_timestamp"]

JOB_FORMAT = 1
JOB_FUNCTION = "spanloom.worker.job.run_node_job"  #: wire format: shown by RQ's tools, never imported by a worker
FAILURE_TTL_SECONDS = 7 * 24 * 3600  #: how long RQ's tools show a failed node job
_PUSH_BATCH = 1000
_LATEST = 253402300800.0  # the year 10000, in Unix seconds: the bound of datetime
_ID = re.compile(r"[A-Za-z0-9_$-]{1,200}").fullmatch


@dataclass(frozen=True, slots=True)
class NodeMessage:
    """The content of a node job: execution, node, item, node type, push number, and the time of its push."""

    job_id: str
    execution_id: str
    node_id: str
    item: int
    node_type: str
    push: int
    pushed_at: float  # the store's clock, Unix seconds
    list_name: str  # the RQ queue it was on
    recovery_attempts: int = 0  # how often the run was lost with its worker, when it was pushed

    @property
    def key(self) -> NodeKey:
        """The key of the node run to run."""
        return NodeKey(self.execution_id, self.node_id, self.item)

    def as_dict(self) -> dict[str, Any]:
        """Return the argument of the RQ job, as it is stored in Redis."""
        lost = {"recovery_attempts": self.recovery_attempts} if self.recovery_attempts else {}
        return {
            "format": JOB_FORMAT,
            "execution": self.execution_id,
            "node": self.node_id,
            "item": self.item,
            "type": self.node_type,
            "push": self.push,
            "at": self.pushed_at,
            **lost,
        }

    @classmethod
    def of(cls, job: NodeJob, list_name: str) -> NodeMessage:
        """Return the message of a push."""
        return cls(
            job_id=f"{job.execution_id}-{job.node_id}-{job.item}-{job.push}",
            execution_id=job.execution_id,
            node_id=job.node_id,
            item=job.item,
            node_type=job.node_type,
            push=job.push,
            pushed_at=job.pushed_at.timestamp(),
            list_name=list_name,
            recovery_attempts=job.recovery_attempts,
        )

    @classmethod
    def parse(cls, job_id: str, data: bytes, list_name: str) -> NodeMessage:
        """Read an RQ job's data. Raises ValueError, with the reason, for data that is no node job of our format."""
        try:
            function, instance, args, kwargs = json.loads(data)
            (message,) = args
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"its data is not a JSON call with one argument ({error})") from error
        if function != JOB_FUNCTION or instance is not None or kwargs or not isinstance(message, dict):
            raise ValueError(f"it calls {function!r}; this worker runs node jobs only")
        if message.get("format") != JOB_FORMAT:
            raise ValueError(f"its format is {message.get('format')!r}, this worker knows {JOB_FORMAT}")
        try:
            made = cls(
                job_id=job_id,
                execution_id=str(message["execution"]),
                node_id=str(message["node"]),
                item=int(message["item"]),
                node_type=str(message["type"]),
                push=int(message["push"]),
                pushed_at=float(message["at"]),
                list_name=list_name,
                recovery_attempts=int(message.get("recovery_attempts", 0)),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"its message lacks or mistypes a field ({error!r})") from error
        if not (0 <= made.item < 2**31 and 0 <= made.push < 2**31 and 0 <= made.pushed_at < _LATEST):
            raise ValueError("a number in its message is out of range")
        if not (_ID(made.execution_id) and _ID(made.node_id)):
            raise ValueError("an id in its message has odd characters")
        return made


class NodeQueue:
    """The RQ queues of one namespace, one list for each queue and priority."""

    def __init__(self, redis: Any, namespace: str) -> None:
        """Take a URL or a client; connects at first use. Raises ConfigurationError."""
        self.redis: Any = redis_client(redis)  # Any: redis-py types answers as bytes | str; ours are bytes
        self.blocking: Any = redis_client(redis, answer_seconds=BLOCKING_SECONDS)  # for reads that wait for jobs
        self.breaker = CircuitBreaker(self.redis)
        self.namespace = namespace
        self.keys = RedisKeys.of(namespace)

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

    def push(self, jobs: Sequence[NodeJob], *, ended: Iterable[str] = (), changed: Iterable[str] = ()) -> None:
        """Push node jobs, and publish ended and changed executions, in one round trip per thousand jobs.

        Raises QueueUnavailable.
        """
        with self.breaker.guard():
            for start in range(0, max(len(jobs), 1), _PUSH_BATCH):
                pipeline = self.redis.pipeline(transaction=False)
                self._add_pushes(pipeline, jobs[start : start + _PUSH_BATCH])
                if start == 0:
                    for execution_id in ended:
                        pipeline.publish(self.keys.ended_channel(execution_id), "ended")
                    for execution_id in changed:
                        pipeline.publish(self.keys.changed_channel(execution_id), "changed")
                if len(pipeline):
                    pipeline.execute()

    def known_lists(self, named: Iterable[str]) -> list[str]:
        """Return the lists in `named` and every other list of the namespace in RQ's set, in order.

        Raises QueueUnavailable.
        """
        with self.breaker.guard():
            known = {key.decode().removeprefix(self.keys.queue("")) for key in self.redis.smembers(self.keys.queues)}
        return sorted({name for name in known if name.startswith(f"{self.namespace}.")} | set(named))

    def heads(self, list_names: Iterable[str]) -> dict[str, datetime | None]:
        """Return, by `queue_key`, the time at which the first job of each list was pushed; None for an empty list.

        Covers the lists in `list_names` and every other list of the namespace in RQ's set. Raises QueueUnavailable.
        """
        prefix = f"{self.namespace}."
        with self.breaker.guard():
            names = self.known_lists(list_names)
            pipeline = self.redis.pipeline(transaction=False)
            for name in names:
                pipeline.lindex(self.keys.queue(name), 0)
            first = pipeline.execute()
            pipeline = self.redis.pipeline(transaction=False)
            waiting = [(name, job_id) for name, job_id in zip(names, first, strict=True) if job_id is not None]
            for _, job_id in waiting:
                pipeline.hget(self.keys.job("").encode() + job_id, "data")
            datas = pipeline.execute() if waiting else []
        heads: dict[str, datetime | None] = {
            name.removeprefix(prefix): None for name, job_id in zip(names, first, strict=True) if job_id is None
        }
        for (name, job_id), data in zip(waiting, datas, strict=True):
            try:
                message = NodeMessage.parse(job_id.decode(), data or b"", name)
            except ValueError:
                continue  # a foreign or vanished job at the head has no such time; the next call will find one
            heads[name.removeprefix(prefix)] = datetime.fromtimestamp(message.pushed_at, UTC)
        return heads

    def depths(self, list_names: Sequence[str]) -> dict[str, int]:
        """Return the number of jobs that wait on each of these lists. Raises QueueUnavailable."""
        with self.breaker.guard():
            pipeline = self.redis.pipeline(transaction=False)
            for name in list_names:
                pipeline.llen(self.keys.queue(name))
            return dict(zip(list_names, pipeline.execute(), strict=True))

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
        "description": f"{message.node_type} for node {message.node_id} of execution {message.execution_id}",
        "timeout": -1,
        "result_ttl": 0,
        "failure_ttl": FAILURE_TTL_SECONDS,
        "status": "queued",
    }
