"""The cleaner of RQ's started jobs: removes those of dead workers, so that RQ's tools neither show nor fail them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.store.port import ExecutionStore

__all__ = ["StartedJobCleaner"]

_LAPSED_SECONDS = 60  #: how long after its time a job of a live worker counts as left behind: Redis may have been away

# Removes ARGV's pairs of job and worker from KEYS[1]; the other keys are those of the jobs, in the same order.
# A job that another worker has started by now, or that failed, is kept.
_STRIKE_OFF = """
for number = 2, #KEYS do
  local id, worker = ARGV[2 * number - 3], ARGV[2 * number - 2]
  redis.call('ZREM', KEYS[1], id .. ':' .. worker)
  local job = redis.pcall('HMGET', KEYS[number], 'status', 'worker_name')
  if job[1] == 'started' and job[2] == worker then
    redis.call('DEL', KEYS[number])
  end
end
"""
_BATCH = 500


class _Started(NamedTuple):
    job_id: str
    worker: str
    until: float  # Unix seconds


class StartedJobCleaner:
    """The cleaner of RQ's registries of started jobs, for all lists of a namespace."""

    def __init__(self, store: ExecutionStore, queue: NodeQueue, list_names: Sequence[str]) -> None:
        self._store = store
        self._queue = queue
        self._list_names = list_names

    def clean(self, *dead: str) -> int:
        """Remove the jobs of workers that hold no lease, or are named in `dead`; return their number.

        Their node runs are recovered by the store. Raises QueueUnavailable, StoreUnavailable.
        """
        started = self._started()  # read before the leases: a worker that has started a job holds one already
        if not any(started.values()):
            return 0
        live = {lease.name for lease in self._store.list_workers()} - set(dead)
        lapsed = time.time() - _LAPSED_SECONDS
        count = 0
        for list_name, jobs in started.items():
            left = [job for job in jobs if job.worker not in live or job.until < lapsed]
            count += len(left)
            for first in range(0, len(left), _BATCH):
                batch = left[first : first + _BATCH]
                keys = [self._queue.keys.started(list_name), *(self._queue.keys.job(job.job_id) for job in batch)]
                pairs = [text for job in batch for text in (job.job_id, job.worker)]
                with self._queue.breaker.guard():
                    self._queue.redis.eval(_STRIKE_OFF, len(keys), *keys, *pairs)
        return count

    def _started(self) -> dict[str, list[_Started]]:
        names = self._queue.known_lists(self._list_names)
        with self._queue.breaker.guard():
            pipeline = self._queue.redis.pipeline(transaction=False)
            for name in names:
                pipeline.zrange(self._queue.keys.started(name), 0, -1, withscores=True)
            answers = pipeline.execute(raise_on_error=False)
        return {
            name: [_Started(*_names(member), until) for member, until in answer]
            for name, answer in zip(names, answers, strict=True)
            if isinstance(answer, list)  # else the key is of another type
        }


def _names(member: bytes) -> tuple[str, str]:
    job_id, _, worker = member.decode(errors="replace").rpartition(":")
    return job_id, worker
