"""DBOS: one workflow an execution, from a queue that is polled often; what stands side by side are steps of asyncio."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence

import psycopg
from dbos import DBOS, DBOSClient, DBOSConfig, EnqueueOptions
from driver import Driver, ran, ready

URL = os.environ["BENCH_POSTGRES"]
QUEUE = "bench"
POLL_SECONDS = 0.02  # by default 1
CONCURRENCY = 20
LOOK_SECONDS = 0.005  # of the driver, which asks for states


@DBOS.step(name="node")
def node(run: str, stage: int, number: int) -> None:
    """Do nothing."""
    ran(run, stage, number)


@DBOS.step(name="node_async")
async def node_async(run: str, stage: int, number: int) -> None:
    """Do nothing."""
    ran(run, stage, number)


@DBOS.workflow(name="sync")
def run_one_by_one(run: str, stages: Sequence[int]) -> str:
    """Run stages of one node."""
    for stage in range(len(stages)):
        node(run, stage, 0)
    return run


@DBOS.workflow(name="async")
async def run_side_by_side(run: str, stages: Sequence[int]) -> str:
    """Run stages of several nodes."""
    for stage, width in enumerate(stages):
        await asyncio.gather(*(node_async(run, stage, number) for number in range(width)))
    return run


class DbosDriver(Driver):
    """Enqueues workflows by DBOS' client; counts those that ended, or polls for a result."""

    def __init__(self) -> None:
        DBOS(config=_config())
        DBOS.launch()  # makes the schema
        DBOS.register_queue(QUEUE, worker_concurrency=CONCURRENCY, polling_interval_sec=POLL_SECONDS)
        DBOS.destroy()
        self._client = DBOSClient(system_database_url=URL)
        self._connection = psycopg.connect(URL, autocommit=True)
        self._started = 0

    def start(self, runs: Sequence[str], stages: Sequence[int]) -> None:
        name = "sync" if max(stages) == 1 else "async"
        for run in runs:
            options: EnqueueOptions = {"queue_name": QUEUE, "workflow_name": name, "workflow_id": run}
            self._last = self._client.enqueue(options, run, stages)
        self._started += len(runs)

    def wait(self) -> None:

        ended = "select count(*) from dbos.workflow_status where status = 'SUCCESS'"
        while self._connection.execute(ended).fetchone()[0] < self._started:
            time.sleep(LOOK_SECONDS)

    def wait_for_one(self) -> None:
        self._last.get_result(polling_interval_sec=LOOK_SECONDS)


def _config() -> DBOSConfig:
    return {"name": "bench", "system_database_url": URL, "log_level": "ERROR", "application_version": "1"}


if __name__ == "__main__":
    if sys.argv[1] == "drive":
        DbosDriver().drive()
    else:
        DBOS(config=_config() | {"executor_id": str(os.getpid())})
        DBOS.launch()
        ready()
        signal.sigwait([signal.SIGTERM])
        DBOS.destroy()
