"""Absurd: one task an execution, a step a node, one after the other; tasks are claimed by eight, polled for often."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
from absurd_sdk import Absurd, TaskContext
from driver import Driver, ran, ready

URL = os.environ["BENCH_POSTGRES"]
QUEUE = "bench"
POLL_SECONDS = 0.01  # by default 0.25
BATCH = 8
LOOK_SECONDS = 0.005  # of the driver, which asks for states

app = Absurd(URL, queue_name=QUEUE)


@app.register_task(name="graph")
def graph(parameters: list[Any], context: TaskContext) -> str:
    """Run every node as a step."""
    run, stages = parameters
    for stage, width in enumerate(stages):
        for number in range(width):
            context.step(f"{stage}-{number}", lambda stage=stage, number=number: ran(run, stage, number))
    return run


class AbsurdDriver(Driver):
    """Spawns tasks, and looks at their state."""

    def __init__(self) -> None:
        absurdctl = str(Path(sys.executable).parent / "absurdctl")
        subprocess.run([absurdctl, "init", "-d", URL], check=True, stdout=sys.stderr)
        app.create_queue(QUEUE)
        self._connection = psycopg.connect(URL, autocommit=True)
        self._started = 0

    def start(self, runs: Sequence[str], stages: Sequence[int]) -> None:
        for run in runs:
            self._last = app.spawn("graph", [run, stages])["task_id"]
        self._started += len(runs)

    def wait(self) -> None:
        ended = f"select count(*) from absurd.t_{QUEUE} where state = 'completed'"
        while self._connection.execute(ended).fetchone()[0] < self._started:
            time.sleep(LOOK_SECONDS)

    def wait_for_one(self) -> None:
        while (result := app.fetch_task_result(self._last)) is None or result.state != "completed":
            time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    if sys.argv[1] == "drive":
        AbsurdDriver().drive()
    else:
        signal.signal(signal.SIGTERM, lambda *_: app.stop_worker())
        ready()
        app.start_worker(batch_size=BATCH, poll_interval=POLL_SECONDS)
