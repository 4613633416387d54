"""Celery: chains, and a chord for what joins; one process of the solo pool each, with results for what is awaited."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from celery import Celery, Signature, chain, group
from celery.result import AsyncResult
from celery.signals import worker_ready
from driver import Driver, ran, ready

URL = f"redis+socket://{os.environ['BENCH_REDIS']}"

app = Celery("bench", broker=URL, backend=URL)
app.conf.update(worker_send_task_events=False, worker_enable_remote_control=False)


@app.task(name="node")
def node(run: str, stage: int, number: int) -> None:
    """Do nothing."""
    ran(run, stage, number)


class CeleryDriver(Driver):
    """Starts canvases, and awaits the result of the last task of each."""

    def __init__(self) -> None:
        self._results: list[AsyncResult] = []

    def start(self, runs: Sequence[str], stages: Sequence[int]) -> None:
        self._results = [self._canvas(run, stages).apply_async() for run in runs]

    def wait(self) -> None:
        for result in reversed(self._results):  # what was started last mostly ends last
            result.get(interval=0.005)

    @staticmethod
    def _canvas(run: str, stages: Sequence[int]) -> Signature:
        parts = []
        for stage, width in enumerate(stages):
            last = stage + 1 == len(stages)
            tasks = [node.si(run, stage, number) for number in range(width)]
            parts.append(group(tasks) if width > 1 else tasks[0] if last else tasks[0].set(ignore_result=True))
        return chain(*parts) if len(parts) > 1 else parts[0]


@worker_ready.connect
def _on_ready(**_: object) -> None:
    ready()


if __name__ == "__main__":
    if sys.argv[1] == "drive":
        CeleryDriver().drive()
    else:
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=ERROR"]
        app.worker_main(["worker", "--pool=solo", f"--hostname={os.getpid()}", *quiet])
