"""A store that refuses for seconds: workers wait, say why, and go on; no node fails of it, and none is stuck."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest

from e2e.support.behaviour_app import make_engine
from e2e.support.endpoints import free_ports, problems, scrape, value
from e2e.support.harness import System, WorkerProcess, until, worker_processes
from e2e.support.harness import system as new_system
from spanloom.engine import ExecutionStatus, StoreUnavailable
from spanloom.stores.postgres import accelerated, connections
from spanloom.testing.servers import RedisServer
from support.refusing import USER, grant, refusing, revoke, set_for_user, user_url

pytestmark = pytest.mark.stores("postgres", why="each kind of refusal is one of Postgres'")

EXECUTIONS = 6
OPTIONS = ("--concurrency", "3", "--lease", "2")


@pytest.fixture
def system(postgres_url: str, own_redis: RedisServer) -> Iterator[System]:
    """A system whose workers come as a user of their own, and whose engine does not."""
    with new_system("postgres", postgres_url, own_redis.url, workers=0) as made:
        yield made


@contextmanager
def revoked(url: str) -> Iterator[None]:
    with psycopg.connect(url, autocommit=True) as connection:
        revoke(connection)
        try:
            yield
        finally:
            grant(connection)


@contextmanager
def read_only(url: str) -> Iterator[None]:
    with psycopg.connect(url, autocommit=True) as connection:
        set_for_user(connection, "default_transaction_read_only", "on")
        try:
            yield
        finally:
            set_for_user(connection, "default_transaction_read_only", None)


@contextmanager
def no_time(url: str) -> Iterator[None]:
    """All statements of the user take too long."""
    with ExitStack() as stack:
        connection = stack.enter_context(psycopg.connect(url, autocommit=True))
        holder = stack.enter_context(psycopg.connect(url))
        set_for_user(connection, "statement_timeout", "20ms")
        holder.execute("lock table spanloom.node_results, spanloom.events")
        try:
            yield
        finally:
            holder.rollback()
            set_for_user(connection, "statement_timeout", None)


def raising(state: str, table: str = "node_results") -> Callable[[str], Any]:
    return lambda url: refusing(url, state, table)


REFUSALS: dict[str, tuple[Callable[[str], Any], str]] = {
    "rights are revoked": (revoked, "permission denied"),
    "the database is read-only": (read_only, "read-only transaction"),
    "statements are timed out": (no_time, "statement timeout"),
    "the disk is full": (raising("53100"), "no such words here"),
    "memory is out": (raising("53200"), "no such words here"),
    "a block can't be read": (raising("58030"), "no such words here"),
    "nothing can be noted": (raising("53100", "events"), "no such words here"),
    "a function is missing": (raising("42883"), "no such words here"),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_is_refused_for_seconds_goes_on_afterwards(system: System, refusal: str) -> None:
    refuse, words = REFUSALS[refusal]
    gate = "refused"
    workflow_id = system.register(
        {"id": "a", "type": "gate", "config": {"gate": gate}}, {"id": "b", "type": "echo", "inputs": ["a"]}
    )
    port = free_ports()
    with user_url(system.store_url) as url:
        with worker_processes(1, url, system.redis_url, *OPTIONS, "--metrics-port", str(port)) as [worker]:
            # given nodes that run, and others that wait for a slot
            ids = system.engine.enqueue_workflows(workflow_id, range(EXECUTIONS))
            for _ in range(3):
                system.arrived(gate)
            with refuse(system.store_url):
                # when what runs ends while the store refuses
                system.open_gate(gate, EXECUTIONS)
                until(lambda: worker.events("record_waits_for_store"))
                # then it is said, where it can be seen
                until(lambda: words in problems(port).get("store", ""))
                assert any(words in line["error"] for line in worker.events("record_waits_for_store"))
                assert value(scrape(port), "spanloom_store_unavailable_total", spanloom_store_operation="record") > 0
            # and goes on once it does not
            ended = [system.engine.wait(one, timeout=30) for one in ids]
            until(lambda: problems(port) == {})
        assert [one.status for one in ended] == [ExecutionStatus.COMPLETED] * EXECUTIONS
        _each_recorded_once(system, ids)
        assert not [line for line in worker.lines if '"level": "error"' in line]


def test_a_worker_without_rights_at_its_start_ends_with_a_sentence(system: System) -> None:
    with user_url(system.store_url) as url, revoked(system.store_url):
        worker = WorkerProcess(url, system.redis_url)
        assert worker.wait() == 2
    assert "permission denied" in worker.log
    assert "Traceback" not in worker.log


def test_a_start_is_refused_at_once_with_the_databases_words(system: System) -> None:
    workflow_id = system.register({"id": "a", "type": "echo"})
    with (
        refusing(system.store_url, "53100", "events"),
        pytest.raises(StoreUnavailable, match="no such words here"),
    ):
        system.engine.enqueue_workflow(workflow_id)


@pytest.mark.parametrize("state", ["53200", "58030"])
def test_one_record_that_is_refused_holds_up_no_other(system: System, state: str) -> None:
    bad = system.register({"id": "a", "type": "echo"})
    good = system.register({"id": "a", "type": "echo"}, {"id": "b", "type": "echo", "inputs": ["a"]})
    with worker_processes(1, system.store_url, system.redis_url, *OPTIONS) as [worker]:
        with refusing(system.store_url, state, when="new.data = '\"bad\"'"):
            refused = system.engine.enqueue_workflows(bad, ["bad", "bad"])
            until(lambda: len(worker.events("record_waits_for_store")) > 0)
            for number in range(10):
                assert system.run(good, number, timeout=10).output == number
            assert {system.engine.store.get_execution(one).status for one in refused} == {ExecutionStatus.RUNNING}  # type: ignore[union-attr]
        assert [system.engine.wait(one, timeout=30).output for one in refused] == ["bad", "bad"]
    _each_recorded_once(system, refused)


@pytest.mark.parametrize("state", ["53200", "54000"])
def test_one_claim_that_is_refused_costs_no_other_its_run(system: System, state: str) -> None:
    workflow_id = system.register({"id": "a", "type": "echo"})
    ids = system.engine.enqueue_workflows(workflow_id, range(6))
    started = f"new.kind = 'node.started' and new.execution_id = '{ids[2]}'"
    with (
        refusing(system.store_url, state, "events", started),
        worker_processes(1, system.store_url, system.redis_url, "--concurrency", "6", "--lease", "2"),
    ):
        others = [one for one in ids if one != ids[2]]
        assert [system.engine.wait(one, timeout=10).output for one in others] == [0, 1, 3, 4, 5]
        if state == "54000":
            failed = system.engine.wait(ids[2], timeout=10)
            assert failed.status is ExecutionStatus.FAILED
            assert failed.error is not None
            assert (failed.error["type"], failed.error["node_id"]) == ("PayloadRejected", "a")
            assert "no such words here" in failed.error["message"]
            return
        assert system.statuses(ids[2]) == {"a": "queued"}
    with worker_processes(1, system.store_url, system.redis_url):
        assert system.engine.wait(ids[2], timeout=30).output == 2


def test_a_line_that_can_not_be_kept_does_not_fail_its_node(system: System) -> None:
    retry = {"max_attempts": 2, "delay": 0.01}
    workflow_id = system.register({"id": "a", "type": "telling", "retry": retry})
    with (
        worker_processes(1, system.store_url, system.redis_url, *OPTIONS),
        refusing(system.store_url, "22021", "logs", "new.level <> 'warning'"),
    ):
        execution = system.run(workflow_id, timeout=20)
    assert execution.status is ExecutionStatus.COMPLETED
    assert ["can't be kept" in line.message for line in system.engine.store.get_logs(execution.id)] == [True, True]


def test_a_server_process_that_stands_still_holds_no_worker(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STATEMENT_SECONDS", 0.5)
    monkeypatch.setattr(connections, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(accelerated, "LEASE_SECONDS", 0.5)
    with user_url(system.store_url) as url:
        engine = make_engine(url, system.redis_url)
        with engine, engine.start_workers(1, concurrency=3, lease_seconds=2):
            _play_stopped_sessions(system)


@pytest.mark.torture
def test_a_server_process_that_stands_still_holds_no_worker_process(system: System) -> None:
    with user_url(system.store_url) as url, worker_processes(1, url, system.redis_url, *OPTIONS):
        _play_stopped_sessions(system)


def _play_stopped_sessions(system: System) -> None:
    """Stop the server's processes behind all of a worker's connections just before nodes end."""
    gate = "stopped"
    workflow_id = system.register(
        {"id": "a", "type": "gate", "config": {"gate": gate}}, {"id": "b", "type": "echo", "inputs": ["a"]}
    )
    plain = system.register({"id": "a", "type": "echo"})
    ids = system.engine.enqueue_workflows(workflow_id, range(2))
    for _ in ids:
        system.arrived(gate)
    with psycopg.connect(system.store_url, autocommit=True) as connection:
        found = connection.execute("select pid from pg_stat_activity where usename = %s", [USER]).fetchall()
    assert len(found) > 1
    try:
        for (pid,) in found:
            os.kill(pid, signal.SIGSTOP)
        system.open_gate(gate, 20)  # again for those whose claim was lost meanwhile
        ended = [system.engine.wait(one, timeout=60) for one in ids]
        assert system.run(plain, 1, timeout=30).output == 1
    finally:
        for (pid,) in found:
            os.kill(pid, signal.SIGCONT)
    assert [one.status for one in ended] == [ExecutionStatus.COMPLETED] * 2
    _each_recorded_once(system, ids)


def _each_recorded_once(system: System, ids: Sequence[str]) -> None:
    for execution_id in ids:
        kinds = [(event.kind, event.node_id) for event in system.engine.store.get_events(execution_id)]
        ends = [kind for kind in kinds if kind[0] in ("node.completed", "execution.completed")]
        assert len(ends) == len(set(ends)), ends
