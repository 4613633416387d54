"""RQ's failed jobs: nodes that failed for good, and jobs that were refused, bounded in time, number and size."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry
from rq.results import Result
from rq.serializers import JSONSerializer

from spanloom.engine.queue.message import JOB_FUNCTION, NodeMessage
from spanloom.engine.queue.node_queue import FAILURE_TTL_SECONDS, NodeQueue, rq_timestamp

__all__ = ["MOST_FAILED", "FailedJobs"]

MOST_FAILED = 1000  #: failed jobs that RQ's tools show of one list; the oldest make room
_MOST_REASON = 2000  # characters: the store has the whole error
_TRIM_BATCH = 1000

# Deletes the oldest members of KEYS[1] beyond ARGV[1], ARGV[2] at most, with their hashes and results, whose keys begin
# with ARGV[3] and ARGV[4].
_TRIM = """
local excess = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[1])
if excess <= 0 then return end
local last = math.min(excess, tonumber(ARGV[2])) - 1
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, last)) do redis.call('DEL', ARGV[3] .. id, ARGV[4] .. id) end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, last)
"""


class FailedJobs:
    """The writer of RQ's registries of failed jobs. Its methods add commands to a pipeline, and send nothing."""

    def __init__(self, queue: NodeQueue, worker_name: str) -> None:
        self._redis = queue.redis
        self._keys = queue.keys
        self._worker_name = worker_name

    def refuse(self, pipe: Any, job_id: bytes, list_name: str, reason: str) -> None:
        """Show a job that is no node job as failed, as it is."""
        key = self._keys.job("").encode() + job_id
        pipe.zrem(self._keys.started(list_name), job_id + f":{self._worker_name}".encode())
        pipe.hset(key, mapping={"status": "failed", "ended_at": rq_timestamp(), "exc_info": reason[-_MOST_REASON:]})
        pipe.expire(key, FAILURE_TTL_SECONDS)
        pipe.zadd(self._keys.failed(list_name), {job_id: datetime.now(UTC).timestamp() + FAILURE_TTL_SECONDS})
        self._trim(pipe, list_name)

    def show(self, pipe: Any, message: NodeMessage, reason: str) -> None:
        """Show the job of a node that failed for good."""
        reason = reason[-_MOST_REASON:]
        job = Job.create(
            JOB_FUNCTION,
            args=[message.as_dict()],
            id=message.job_id,
            connection=self._redis,
            serializer=JSONSerializer,
            origin=message.list_name,
            description=message.description,
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
        self._trim(pipe, message.list_name)

    def _trim(self, pipe: Any, list_name: str) -> None:
        beginnings = (self._keys.job(""), Result.get_key(""))  # type: ignore[no-untyped-call]  # as RQ leaves it
        pipe.eval(_TRIM, 1, self._keys.failed(list_name), MOST_FAILED, _TRIM_BATCH, *beginnings)
