"""What the calls of a store alone cost a node: starts of 100 executions, claims and records of waves of 32 nodes.

One thread plays the engine and a worker, without Redis and handlers, on SQLite in a file and in memory: CPU of the
process, and time with what the disk takes. `bench/store_calls.py [--rounds N]`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from workflows import workflow
from workloads import WORKLOADS, Workload

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import (
    AttemptSpan,
    Claim,
    ExecutionHeader,
    NodeClaim,
    NodeJob,
    NodeKey,
    Outcome,
    RecordRequest,
    StartRequest,
    StartResult,
)
from spanloom.stores import open_store

WAVE = 32
STARTS = 100
WORKER = "bench"
CALLS = ("start", "claim", "record")

Answer = TypeVar("Answer")


class Player:
    """The engine and the worker of one store, and what its calls took."""

    def __init__(self, store: ExecutionStore, workload: Workload) -> None:
        self._store = store
        self._workload = workload
        graph = workflow(workload)
        store.save_workflow(graph)
        self._successors: dict[str, list[str]] = defaultdict(list)
        for node in graph.nodes:
            for source in node.parents:
                self._successors[source].append(node.id)
        store.register_worker(WORKER, name=WORKER, host="", pid=1, queues=["default"], lease_seconds=3600)
        self.cpu: Counter[str] = Counter()
        self.wall = 0.0

    def run(self, executions: int) -> None:
        """Start executions, and run all of their nodes."""
        self.cpu.clear()
        self.wall = 0.0
        jobs: list[NodeJob] = []
        for begin in range(0, executions, STARTS):
            requests = [self._start() for _ in range(min(STARTS, executions - begin))]
            for answer in self._timed("start", partial(self._store.create_executions, requests)):
                assert isinstance(answer, StartResult)
                jobs += answer.jobs
        wave: list[tuple[ExecutionHeader, NodeClaim]] = []
        while jobs or wave:
            if not wave:
                keys, jobs = [NodeKey(job.execution_id, job.node_id, job.item) for job in jobs[:WAVE]], jobs[WAVE:]
                claim = partial(self._store.claim, keys, worker_id=WORKER, token=uuid.uuid4().hex)
                wave = [(one.header, one.node) for one in self._timed("claim", claim) if isinstance(one, Claim)]
            requests_ = [self._request(header, node) for header, node in wave]
            answers = self._timed("record", partial(self._store.record, requests_))
            jobs += [job for answer in answers for job in answer.jobs]
            wave = [(header, one.next) for (header, _), one in zip(wave, answers, strict=True) if one.next is not None]

    def _start(self) -> StartRequest:
        trace = f"00-{uuid.uuid4().hex}-{uuid.uuid4().hex[:16]}-01"
        return StartRequest(str(uuid.uuid4()), self._workload.name, '{"id":7}', trace_parent=trace)

    def _request(self, header: ExecutionHeader, node: NodeClaim) -> RecordRequest:
        now, successors = time.time_ns(), tuple(self._successors[node.node_id])
        return RecordRequest(
            header.execution_id, node.node_id, 0, node.fence, WORKER, Outcome.COMPLETED, data="null",
            span=f"{uuid.uuid4().hex[:16]}:{now}", own_span=AttemptSpan(now, now), successors=successors,
        )  # fmt: skip

    def _timed(self, name: str, call: Callable[[], Sequence[Answer]]) -> Sequence[Answer]:
        cpu, wall = time.process_time(), time.perf_counter()
        answers = call()
        self.cpu[name] += time.process_time() - cpu
        self.wall += time.perf_counter() - wall
        return answers


def measure(workload: Workload, rounds: int) -> None:
    """Print a row of the table for each store, which take turns."""
    with tempfile.TemporaryDirectory() as directory:
        urls = {"SQLite": f"sqlite:///{Path(directory) / 'store.db'}", "memory": "memory://"}
        stores = {name: open_store(url) for name, url in urls.items()}
        players = {}
        for name, store in stores.items():
            store.migrate()
            players[name] = Player(store, workload)
        found: dict[str, list[list[float]]] = {name: [] for name in stores}
        for _ in range(rounds + 1):
            for name, player in players.items():
                player.run(workload.executions)
                costs = [*(player.cpu[call] for call in CALLS), player.cpu.total(), player.wall]
                found[name].append([cost / workload.nodes * 1e6 for cost in costs])
        for name, rows in found.items():  # without the first round
            cells = " | ".join(f"{statistics.median(column):,.0f}" for column in zip(*rows[1:], strict=True))
            print(f"| {workload.name}, {name} | {cells} |", flush=True)
        for store in stores.values():
            store.close()


def main() -> None:
    """Measure the workloads that are run all at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(f"| us a node | {' | '.join(f'CPU {name}' for name in CALLS)} | CPU in all | time in all |")
    print("|---|---|---|---|---|---|")
    for workload in WORKLOADS:
        if not workload.one_by_one:
            measure(workload, given.rounds)


if __name__ == "__main__":
    main()
