"""Spanloom over each of its stores, two workers with their default settings, through the public API only.

SQLite and Postgres: two worker processes, every commit on disk before it is answered (synchronous FULL, fsync on).
Memory: two workers in threads of the bench's own process, on the same real Redis.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from systems import END_SECONDS, WORKERS, BenchFailed, Ground, LocalPlayer, System
from workers import worker_processes
from workflows import registry, workflow
from workloads import Workload

from spanloom.engine import ExecutionFilter, ExecutionStatus, NodeStatus, WorkflowEngine

__all__ = ["SPANLOOM_SYSTEMS", "SpanloomPlayer"]

_INPUT = {"id": 7}


class SpanloomSystem(System):
    """Spanloom with one of its stores."""

    def __init__(self, name: str, title: str) -> None:
        self.name = name
        self.title = title
        self.needs_postgres = name == "postgres"

    @contextmanager
    def playing(self, ground: Ground) -> Generator[SpanloomPlayer]:
        with ExitStack() as stack:
            if self.needs_postgres:
                store_url = stack.enter_context(ground.database())
            else:
                store_url = "memory://" if self.name == "memory" else f"sqlite:///{ground.directory}/spanloom.db"
            engine = WorkflowEngine(registry, store_url, ground.redis.url)
            stack.callback(engine.close)
            engine.store.migrate()
            engine.open()
            if self.name == "memory":
                stack.enter_context(engine.start_workers(WORKERS))
            else:
                command = [sys.executable, "-m", "spanloom.cli", "worker", "app:engine", "--processes", "1"]
                environment = {"SPANLOOM_STORE_URL": store_url, "SPANLOOM_REDIS_URL": ground.redis.url}
                stack.enter_context(
                    worker_processes(
                        command, environment, ground.log_path, count_ready=lambda: len(engine.store.list_workers())
                    )
                )
            yield SpanloomPlayer(engine)


class SpanloomPlayer(LocalPlayer):
    """An engine whose workers are ready."""

    def __init__(self, engine: WorkflowEngine) -> None:
        self._engine = engine
        self._ids: list[str] = []
        self._before = 0

    def begin(self, workload: Workload) -> None:
        self._ids = []
        self._engine.register_workflow(workflow(workload))
        self._before = self._completed(workload)

    def run_all(self, workload: Workload) -> None:
        self._ids = self._engine.enqueue_workflows(workload.name, [_INPUT] * workload.executions)
        # What was started last mostly ends last, and one count tells: to look at each of two thousand ends on two
        # cores would be measured as well.
        for execution_id in reversed(self._ids):
            self._engine.wait(execution_id, END_SECONDS)
            if self._completed(workload) - self._before >= workload.executions:
                break

    def run_one(self, workload: Workload, number: int) -> None:
        handle = self._engine.start(workload.name, _INPUT)
        self._ids.append(handle.id)
        handle.result(END_SECONDS)

    def check(self, workload: Workload) -> None:
        store, graph = self._engine.store, workflow(workload)
        expected = {(node.id, NodeStatus.COMPLETED, 1, 0): 1 for node in graph.nodes}
        ends = {node.id: 1 for node in graph.nodes}
        for execution_id in self._ids:
            runs = store.get_node_results(execution_id)
            found = Counter((run.node_id, run.status, run.attempt, run.recovery_attempts) for run in runs)
            ended = Counter(event.node_id for event in store.get_events(execution_id) if event.kind == "node.completed")
            if found != expected or ended != ends:
                raise BenchFailed(
                    f"{workload.name}: execution {execution_id} did not record each of its nodes once, at the first "
                    f"attempt: {dict(found - Counter(expected))} {dict(Counter(expected) - found)} {dict(ended)}"
                )
        self.check_completed(workload)

    def check_completed(self, workload: Workload) -> None:
        """Raise BenchFailed unless as many executions completed as were started: one count, no look at each."""
        if (completed := self._completed(workload) - self._before) != workload.executions:
            raise BenchFailed(f"{workload.name}: {completed:,} executions completed, not {workload.executions:,}")

    def _completed(self, workload: Workload) -> int:
        wanted = ExecutionFilter(workflow_id=workload.name, status=ExecutionStatus.COMPLETED)
        return self._engine.store.get_execution_count(wanted)


SPANLOOM_SYSTEMS = (
    SpanloomSystem("postgres", "Spanloom, Postgres"),
    SpanloomSystem("sqlite", "Spanloom, SQLite"),
    SpanloomSystem("memory", "Spanloom, memory (one process)"),
)
