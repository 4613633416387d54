"""All workers gone at once with hundreds of executions in flight, and Postgres restarted while they are recovered."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from chaos.processes import ProcessGroup
from faults.recovery_app import EXIT_CODE, GO, registry
from spanloom.engine import ExecutionStatus, NodeStatus, Workflow, WorkflowEngine
from spanloom.testing.servers import PostgresServer

EXECUTIONS = 250
WORKERS = 2
LEASE_SECONDS = 5  # a second loss would leave each node to run alone: a renewal may come late
INTO_THE_RECOVERY_SECONDS = 0.2
WORKFLOW = Workflow.model_validate(
    {"id": "held", "nodes": [{"id": "hold", "type": "hold"}, {"id": "after", "type": "after", "inputs": ["hold"]}]}
)


def until(holds: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait for what processes do that can't tell us."""
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up, f"{what}: this did not come within {seconds:g} s"
        time.sleep(0.01)


@pytest.fixture
def engine(postgres_url: str, redis_url: str) -> Iterator[WorkflowEngine]:
    with WorkflowEngine(registry, postgres_url, redis_url) as made:
        made.register_workflow(WORKFLOW)
        yield made


@pytest.fixture
def workers(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[ProcessGroup]:
    environment = {
        "SPANLOOM_STORE_URL": postgres_url,
        "SPANLOOM_REDIS_URL": redis_url,
        "SPANLOOM_LOG_FORMAT": "json",
        GO: str(tmp_path / "go"),
    }
    options = ["--lease", f"{LEASE_SECONDS}s", "--concurrency", str(EXECUTIONS // WORKERS), "--stall", "0"]

    def command(place: int, name: str) -> list[str]:
        return ["spanloom.cli", "worker", "faults.recovery_app:engine", *options]

    made = ProcessGroup("worker", WORKERS, command, environment, tmp_path)
    made.start()
    try:
        made.wait_ready()
        yield made
    finally:
        assert made.close() == []


def after_they_are_back(workers: ProcessGroup, store_url: str, locks: list[psycopg.Connection[Any]]) -> None:
    """Return 0.2 s after as many workers have come back, and the leases of those that are gone have lapsed."""
    until(
        lambda: [line.get("event") for line in logged_since(workers)].count("worker_ready") == WORKERS, "they are back"
    )
    live = "select count(*) from spanloom.workers where lease_until > now()"
    with psycopg.connect(store_url, autocommit=True) as watcher:
        until(lambda: watcher.execute(live).fetchone() == (WORKERS,), "the others' leases lapse")
    time.sleep(INTO_THE_RECOVERY_SECONDS)


def while_they_recover(workers: ProcessGroup, store_url: str, locks: list[psycopg.Connection[Any]]) -> None:
    """Return once the sweep that recovers has released what was lost, and not committed it: a lock keeps it there."""
    lock = psycopg.connect(store_url)
    lock.execute("lock table spanloom.node_runs in share mode")
    waiting = (
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and wait_event_type = 'Lock' and query like '%sweep%'"
    )
    with psycopg.connect(store_url, autocommit=True) as watcher:
        until(lambda: watcher.execute(waiting).fetchone() != (0,), "the sweep is under way")
    time.sleep(INTO_THE_RECOVERY_SECONDS)
    locks.append(lock)  # until Postgres goes away


def after_they_recovered(workers: ProcessGroup, store_url: str, locks: list[psycopg.Connection[Any]]) -> None:
    """Return 0.2 s after what was lost was pushed again."""
    until(lambda: any(line.get("event") == "recovered" for line in logged_since(workers)), "the recovery begins")
    time.sleep(INTO_THE_RECOVERY_SECONDS)


def logged_since(workers: ProcessGroup) -> list[dict[str, Any]]:
    """Return what those logged that the group has started again, by itself."""
    return [line for process in workers.processes[WORKERS:] for line in process.lines()]


@pytest.mark.parametrize(
    "moment",
    [pytest.param(after_they_are_back, marks=pytest.mark.torture), while_they_recover, after_they_recovered],
)
def test_everything_completes_by_itself(
    moment: Callable[[ProcessGroup, str, list[psycopg.Connection[Any]]], None],
    engine: WorkflowEngine,
    workers: ProcessGroup,
    tmp_path: Path,
    postgres_server: PostgresServer,
    postgres_url: str,
) -> None:
    ids = engine.enqueue_workflows(WORKFLOW.id, range(EXECUTIONS))
    until(lambda: engine.store.stats().open_node_runs.get(NodeStatus.RUNNING) == EXECUTIONS, "all are in flight")
    first = list(workers.processes)

    (tmp_path / "go").touch()
    for process in first:
        process.popen.send_signal(signal.SIGUSR1)
    until(lambda: len(workers.exits) == WORKERS, "all workers exit")
    assert [code for _, code in workers.exits] == [EXIT_CODE] * WORKERS
    locks: list[psycopg.Connection[Any]] = []
    moment(workers, postgres_url, locks)
    assert engine.store.stats().executions[ExecutionStatus.RUNNING] > 0
    postgres_server.restart()
    for lock in locks:
        lock.close()

    executions = [engine.wait(execution_id, timeout=60) for execution_id in ids]
    assert [execution for execution in executions if execution.status is not ExecutionStatus.COMPLETED] == []
    assert [execution.output for execution in executions] == [number + 1 for number in range(EXECUTIONS)]
    for execution_id in ids:
        kinds = Counter((event.kind, event.node_id) for event in engine.store.get_events(execution_id))
        assert kinds["node.completed", "hold"] == kinds["node.completed", "after"] == 1
        assert kinds["execution.completed", None] == 1
        assert kinds["node.started", "hold"] >= 2
    assert len(workers.exits) == WORKERS  # none of those that started again has ended
