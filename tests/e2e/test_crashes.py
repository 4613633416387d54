"""Behaviours 26, 29 and 30: workers that are killed or stopped under a node, and a Postgres that goes away."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import psycopg
import pytest

from e2e.support.behaviour_app import RENEWAL
from e2e.support.harness import System, WorkerProcess, until, worker_processes
from spanloom.engine import Execution, ExecutionStatus, NodeStatus, StoreUnavailable
from spanloom.testing.servers import PostgresServer

pytestmark = [
    pytest.mark.every_store,
    pytest.mark.stores("sqlite", "postgres", why="a store in memory has no worker processes to kill"),
]

EXECUTIONS = 25  #: while backends are terminated
LEASE = ("--lease", "2s", "--concurrency", "8")  # a renewal may come more than a second late

T = TypeVar("T")


@contextmanager
def replaced(system: System, *options: str) -> Iterator[list[WorkerProcess]]:
    """Run one worker at a time, and another one whenever it dies."""
    hired: list[WorkerProcess] = []
    over = threading.Event()

    def hire() -> None:
        while not over.is_set():
            hired.append(WorkerProcess(system.store_url, system.redis_url, *options))
            while hired[-1].process.poll() is None and not over.wait(0.02):
                pass

    hiring = threading.Thread(target=hire)
    hiring.start()
    try:
        yield hired
    finally:
        over.set()
        hiring.join()
        for worker in hired:
            worker.stop()


def test_a_node_whose_worker_is_killed_twice_completes(idle_system: System) -> None:
    system = idle_system
    workflow_id = system.register(
        {"id": "kills", "type": "kills", "config": {"times": 2}}, {"id": "after", "type": "name", "inputs": ["kills"]}
    )
    with replaced(system, *LEASE):
        execution = system.run(workflow_id)

    assert execution.output == "after"
    runs = {run.node_id: run for run in system.engine.store.get_node_results(execution.id)}
    assert (runs["kills"].recovery_attempts, runs["kills"].attempt) == (2, 1)
    assert system.ran(execution.id) == ["kills", "kills", "kills", "after"]


def test_a_node_that_always_kills_its_worker_fails_and_takes_no_other_with_it(idle_system: System) -> None:
    system = idle_system
    innocent = [{"id": f"beside{number}", "type": "beside"} for number in range(3)]
    workflow_id = system.register(
        {
            "id": "kills",
            "type": "kills",
            "config": {"times": 99, "beside": 3},
            "continue_on_fail": True,
        },
        *innocent,
    )
    with replaced(system, *LEASE):
        execution = system.run(workflow_id, timeout=90)

    assert execution.status is ExecutionStatus.COMPLETED
    runs = {run.node_id: run for run in system.engine.store.get_node_results(execution.id)}
    assert runs["kills"].status is NodeStatus.FAILED
    assert runs["kills"].error is not None
    assert runs["kills"].error["type"] == "WorkerLost"
    assert runs["kills"].recovery_attempts == 3
    assert {runs[node["id"]].status for node in innocent} == {NodeStatus.COMPLETED}
    assert (
        max(runs[node["id"]].recovery_attempts for node in innocent) == 2
    )  # they were with it, until one more would have failed them


@pytest.mark.stores("postgres", why="who is stopped inside its write transaction stops all writers of a SQLite file")
def test_a_worker_that_slept_past_its_lease_is_refused_and_the_other_ones_result_stands(idle_system: System) -> None:
    system = idle_system
    workflow_id = system.register(
        {"id": "slow", "type": "gate", "config": {"gate": "sleep"}}, {"id": "after", "type": "name", "inputs": ["slow"]}
    )
    with worker_processes(1, system.store_url, system.redis_url, *LEASE) as (sleeper,):
        execution_id = system.engine.enqueue_workflow(workflow_id)
        system.arrived("sleep")
        sleeper.send(signal.SIGSTOP)
        with worker_processes(1, system.store_url, system.redis_url, *LEASE):
            system.arrived("sleep")  # the other one runs it, before the sleeper is back
            sleeper.send(signal.SIGCONT)
            system.open_gate("sleep", times=2)
            execution = system.engine.wait(execution_id, timeout=30)
            until(lambda: sleeper.events("claim_lost"))

    assert execution.output == "after"
    events = [(event.kind, event.node_id) for event in system.engine.store.get_events(execution_id)]
    assert events.count(("node.completed", "slow")) == 1
    assert system.ran(execution_id).count("after") == 1
    (run,) = system.engine.store.get_node_results(execution_id, ["slow"])
    assert run.recovery_attempts == 1


@pytest.mark.stores("postgres")
class TestPostgresAway:
    """Behaviour 29."""

    def test_nine_seconds_away_under_load_lose_nothing(
        self, idle_system: System, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        system = idle_system
        monkeypatch.setenv(RENEWAL, "10")  # a busy machine renews late
        workflow_id = system.register(
            {"id": "a", "type": "echo"},
            {"id": "b", "type": "echo", "inputs": ["a"]},
            {"id": "c", "type": "echo", "inputs": ["a"]},
            {"id": "join", "type": "count", "inputs": ["b", "c"]},
        )
        with worker_processes(2, system.store_url, system.redis_url, "--lease", "6s"):
            ids = system.engine.enqueue_workflows(workflow_id, range(200))
            system.until(ids[5], "execution.completed")
            postgres_server.kill()
            threading.Event().wait(9)  # what is tried is a time
            postgres_server.start()
            executions = [system.engine.wait(one, timeout=60) for one in ids]

        assert {execution.output for execution in executions} == {2}
        recovery_attempts = {run.recovery_attempts for one in ids for run in system.engine.store.get_node_results(one)}
        assert recovery_attempts == {0}  # the workers outlived it: whoever sweeps first gives them time to say so
        for one in ids:
            kinds = [event.kind for event in system.engine.store.get_events(one)]
            assert (kinds.count("node.completed"), kinds.count("execution.completed")) == (4, 1)

    def test_backends_that_are_terminated_again_and_again_lose_nothing(self, idle_system: System) -> None:
        system = idle_system
        workflow_id = system.register(
            *[{"id": f"n{number}", "type": "echo", "inputs": [f"n{number - 1}"] * (number > 0)} for number in range(10)]
        )
        over = threading.Event()
        terminated: list[int] = []
        ids: list[str] = []
        executions: list[Execution] = []

        def terminate() -> None:
            with psycopg.connect(system.store_url, autocommit=True) as connection:
                while not over.wait(0.1):
                    rows = connection.execute(
                        "select pg_terminate_backend(pid) from pg_stat_activity "
                        "where datname = current_database() and pid <> pg_backend_pid()"
                    ).fetchall()
                    terminated.append(len(rows))

        with worker_processes(2, system.store_url, system.redis_url, "--lease", "2s"):
            thread = threading.Thread(target=terminate)
            thread.start()
            try:
                while sum(terminated) <= 20:  # the faster the machine, the more work it takes
                    some = [self._started(system, workflow_id, len(ids) + number) for number in range(EXECUTIONS)]
                    executions += [self._ended(system, one) for one in some]
                    ids += some
            finally:
                over.set()
                thread.join()

        assert [execution.output for execution in executions] == list(range(len(ids)))
        for one in ids:
            kinds = Counter((event.kind, event.node_id) for event in system.engine.store.get_events(one))
            assert {kinds["node.completed", f"n{number}"] for number in range(10)} == {1}
            assert (kinds["execution.started", None], kinds["execution.completed", None]) == (1, 1)
            assert len(system.ran(one)) >= 10

    def test_a_pool_of_idle_connections_that_the_server_closed_is_noticed_at_the_next_use(
        self, idle_system: System, postgres_server: PostgresServer
    ) -> None:
        system = idle_system
        workflow_id = system.register({"id": "a", "type": "echo"})
        with worker_processes(1, system.store_url, system.redis_url, "--concurrency", "8"):
            for one in [system.engine.enqueue_workflow(workflow_id, number) for number in range(40)]:
                system.engine.wait(one, timeout=30)
            postgres_server.restart()

            assert system.run(workflow_id, "again", timeout=30).output == "again"

    def _started(self, system: System, workflow_id: str, number: int) -> str:
        """Start under a key, again if the store was away: what a caller would do."""
        key = f"{workflow_id}-{number}"
        return _answered(lambda: system.engine.enqueue_workflow(workflow_id, number, idempotency_key=key))

    def _ended(self, system: System, execution_id: str) -> Execution:
        """Wait for the end, again if the store was away at the first look: what a caller would do."""
        return _answered(lambda: system.engine.wait(execution_id, timeout=60))


def _answered(ask: Callable[[], T]) -> T:
    """Ask until the store answers."""
    for _ in range(100):
        try:
            return ask()
        except StoreUnavailable:
            continue
    raise AssertionError("the store never answered")
