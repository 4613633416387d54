"""The jobs that stock RQ runs: each enqueues what comes next from within itself, as RQ's users do."""

from __future__ import annotations

from redis import Redis
from rq import Queue, get_current_job

__all__ = ["QUEUE", "enqueue_stage", "job_id", "node"]

QUEUE = "bench"


def job_id(run: str, stage: int, number: int) -> str:
    """Name one job of one run."""
    return f"{run}-{stage}-{number}"


def enqueue_stage(redis: Redis, runs: list[str], stages: tuple[int, ...], stage: int) -> None:
    """Enqueue one stage of each run: a single job, or all jobs in one round trip."""
    queue = Queue(QUEUE, connection=redis)
    if len(runs) == 1 and stages[stage] == 1:
        queue.enqueue(node, runs[0], stages, stage, job_id=job_id(runs[0], stage, 0))
        return
    queue.enqueue_many(
        [
            Queue.prepare_data(node, (run, stages, stage), job_id=job_id(run, stage, number))
            for run in runs
            for number in range(stages[stage])
        ]
    )


def node(run: str, stages: tuple[int, ...], stage: int) -> None:
    """Do nothing; the one that ends its stage, which a counter in Redis tells where there are several, goes on."""
    if stage + 1 == len(stages):
        return
    job = get_current_job()
    assert job is not None
    if stages[stage] > 1 and job.connection.incr(f"bench:{run}:{stage}") < stages[stage]:
        return
    enqueue_stage(job.connection, [run], stages, stage + 1)
