"""All workers gone at once with hundreds of executions in flight, and Postgres restarted while they are recovered."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chaos.crew import Crew
from faults.recovery_app import EXIT_CODE, GO, registry
from spanloom.engine import ExecutionStatus, NodeStatus, Workflow, WorkflowEngine
from spanloom.testing.servers import PostgresServer

EXECUTIONS = 250
WORKERS = 2
LEASE_SECONDS = 2
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
def crew(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[Crew]:
    environment = {
        "SPANLOOM_STORE_URL": postgres_url,
        "SPANLOOM_REDIS_URL": redis_url,
        "SPANLOOM_LOG_FORMAT": "json",
        GO: str(tmp_path / "go"),
    }
    options = ["--lease", f"{LEASE_SECONDS}s", "--concurrency", str(EXECUTIONS // WORKERS)]

    def command(place: int, name: str) -> list[str]:
        return ["spanloom.cli", "worker", "faults.recovery_app:engine", *options]

    made = Crew("worker", WORKERS, command, environment, tmp_path)
    made.start()
    try:
        made.wait_ready()
        yield made
    finally:
        assert made.close() == []


def test_everything_completes_by_itself(
    engine: WorkflowEngine, crew: Crew, tmp_path: Path, postgres_server: PostgresServer
) -> None:
    ids = engine.enqueue_workflows(WORKFLOW.id, range(EXECUTIONS))
    until(lambda: engine.store.stats().open_node_runs.get(NodeStatus.RUNNING) == EXECUTIONS, "all are in flight")
    first = list(crew.hands)

    (tmp_path / "go").touch()
    for hand in first:
        hand.process.send_signal(signal.SIGUSR1)
    until(lambda: len(crew.exits) == WORKERS, "all workers exit")
    assert [code for _, code in crew.exits] == [EXIT_CODE] * WORKERS

    def recovering() -> bool:  # the crew has started as many again, by itself
        return any(line.get("event") == "recovered" for hand in crew.hands[WORKERS:] for line in hand.lines())

    until(recovering, "the recovery begins")
    time.sleep(INTO_THE_RECOVERY_SECONDS)
    assert engine.store.stats().executions[ExecutionStatus.RUNNING] > 0
    postgres_server.restart()

    executions = [engine.wait(execution_id, timeout=60) for execution_id in ids]
    assert [execution for execution in executions if execution.status is not ExecutionStatus.COMPLETED] == []
    assert [execution.output for execution in executions] == [number + 1 for number in range(EXECUTIONS)]
    for execution_id in ids:
        kinds = Counter((event.kind, event.node_id) for event in engine.store.get_events(execution_id))
        assert kinds["node.completed", "hold"] == kinds["node.completed", "after"] == 1
        assert kinds["execution.completed", None] == 1
        assert kinds["node.started", "hold"] >= 2
    assert len(crew.exits) == WORKERS  # none of those that started again has ended
