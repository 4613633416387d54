"""Dramatiq: pipelines, and groups with a callback for what joins; two processes of eight threads."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import GroupCallbacks
from dramatiq.rate_limits.backends import RedisBackend as GroupBackend
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend as ResultBackend
from driver import Driver, ran, ready

URL = f"unix://{os.environ['BENCH_REDIS']}"
THREADS = 8
IDLE_MS = 5  # the longest pause between two looks for messages; by default it grows to a second

broker = RedisBroker(url=URL)
broker.add_middleware(GroupCallbacks(GroupBackend(url=URL)))
broker.add_middleware(Results(backend=ResultBackend(url=URL)))
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name="bench")
def node(run: str, stages: Sequence[int], stage: int, number: int) -> str:
    """Do nothing; the one before a stage of several starts that, and what follows once all of it has ended."""
    ran(run, stage, number)
    if stages[stage] == 1 and stage + 1 < len(stages) and stages[stage + 1] > 1:
        wide = dramatiq.group(message(run, stages, stage + 1, each) for each in range(stages[stage + 1]))
        wide.add_completion_callback(message(run, stages, stage + 2, 0))
        wide.run()
    return run


def message(run: str, stages: Sequence[int], stage: int, number: int, *, awaited: bool = False) -> dramatiq.Message:
    """Return the message that runs a node; its result is kept if it is awaited."""
    return node.message_with_options(args=(run, stages, stage, number), pipe_ignore=True, store_results=awaited)


class DramatiqDriver(Driver):
    """Starts pipelines, and sees the queue empty, or the result of the last message."""

    def start(self, runs: Sequence[str], stages: Sequence[int]) -> None:
        alone = next((stage for stage, width in enumerate(stages) if width > 1), len(stages))
        for run in runs:
            messages = [message(run, stages, stage, 0) for stage in range(alone - 1)]
            self._last = message(run, stages, alone - 1, 0, awaited=len(runs) == 1)
            messages.append(self._last)
            if alone > 1:
                dramatiq.pipeline(messages).run()
            else:
                broker.enqueue(messages[0])

    def wait(self) -> None:
        broker.join("bench", interval=5)

    def wait_for_one(self) -> None:
        self._last.get_result(block=True, timeout=60_000)


if __name__ == "__main__":
    if sys.argv[1] == "drive":
        DramatiqDriver().drive()
    else:
        worker = dramatiq.Worker(broker, worker_threads=THREADS, worker_timeout=IDLE_MS)
        worker.start()
        ready()
        signal.sigwait([signal.SIGTERM])
        worker.stop()
