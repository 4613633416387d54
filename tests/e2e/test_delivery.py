"""Behaviours 31, 32, 33, 37: duplicates, long nodes, stops, and what RQ's own tools see."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from rq import Queue, Worker
from rq.job import Job
from rq.registry import FailedJobRegistry

from e2e.support.harness import System, WorkerProcess, until, worker_processes
from spanloom.engine import ExecutionStatus, NodeStatus, WaitTimeout
from spanloom.engine.store.requests import NodeJob

pytestmark = pytest.mark.every_store

WIP = "rq:wip:spanloom.default"  #: where RQ's tools look for the jobs that run


@pytest.mark.one_in(2)
@pytest.mark.parametrize("copies", [2, 10])
def test_a_node_job_that_is_delivered_many_times_is_recorded_once(system: System, copies: int) -> None:
    workflow_id = system.register(
        {"id": "a", "type": "echo"},
        {"id": "b", "type": "echo", "inputs": ["a"]},
        {"id": "c", "type": "echo", "inputs": ["a"]},
        {"id": "join", "type": "count", "inputs": ["b", "c"]},
    )
    for _ in range(4):
        execution_id = system.engine.enqueue_workflow(workflow_id, 1)
        again = [
            NodeJob(execution_id, node, 0, kind, "default", "normal", 1 + number, datetime.now(UTC))
            for number in range(copies)
            for node, kind in (("a", "echo"), ("b", "echo"), ("c", "echo"), ("join", "count"))
        ]
        system.engine.queue.push(again)

        assert system.engine.wait(execution_id, timeout=30).output == 2
        assert sorted(system.ran(execution_id)) == ["a", "b", "c", "join"]
        events = [event.kind for event in system.engine.store.get_events(execution_id)]
        assert events.count("node.completed") == 4


def test_a_node_that_runs_for_longer_than_its_lease_is_never_run_twice(idle_system: System) -> None:
    system = idle_system
    lease_seconds = 3.0  # a renewal may come two thirds of it late
    workflow_id = system.register({"id": "long", "type": "gate", "config": {"gate": "long"}})
    with _workers(system, 2, lease=lease_seconds):
        execution_id = system.engine.enqueue_workflow(workflow_id)
        system.arrived("long")
        (holder,) = [worker for worker in system.engine.store.list_workers() if worker.running]
        first_lease = holder.lease_until.timestamp()
        ((job, first_score),) = system.redis.zrange(WIP, 0, -1, withscores=True)
        until(lambda: _lease_of(system, holder.worker_id) > first_lease + lease_seconds)  # the first has lapsed
        # RQ's tools do not take it for abandoned, either
        until(lambda: system.redis.zscore(WIP, job) > first_score + lease_seconds)

        system.open_gate("long")

        assert system.engine.wait(execution_id, timeout=30).status is ExecutionStatus.COMPLETED
        assert system.ran(execution_id) == ["long"]


BACKLOG = 500
LOST = [600, pytest.param(2_000, marks=pytest.mark.torture)]  #: more than one sweep queues again


@pytest.mark.one_in(2)
@pytest.mark.stores("sqlite", "postgres", why="an in-memory store has no worker processes to signal")
def test_sigterm_under_load_ends_what_ends_in_its_grace_and_gives_back_the_rest(idle_system: System) -> None:
    system = idle_system
    ending = system.register(
        {"id": "a", "type": "gate", "config": {"gate": "term"}}, {"id": "b", "type": "name", "inputs": ["a"]}
    )
    stuck = system.register({"id": "stuck", "type": "endless"}, {"id": "astuck", "type": "aendless"})
    short = system.register({"id": "a", "type": "unhurried"})
    command = (1, system.store_url, system.redis_url)
    # given four slots that wait and four that work off a list that is full
    with worker_processes(*command, "--grace", "300", "--concurrency", "8") as (worker,):
        held = system.engine.enqueue_workflows(ending, range(2))
        endless = system.engine.enqueue_workflow(stuck)
        for _ in held:
            system.arrived("term")
        until(lambda: len(system.ran(endless)) == 2)
        backlog = system.engine.enqueue_workflows(short, range(BACKLOG))
        system.until(backlog[8], "execution.completed")
        # when it is told to stop, some of what runs ends then, and it is told that its grace is over
        worker.send(signal.SIGTERM)
        until(lambda: worker.events("worker_stopping"))
        system.open_gate("term", times=2)
        for one in held:
            system.until(one, "node.completed", "a")
        worker.send(signal.SIGTERM)
        assert worker.wait(30) == 0

    # then it has claimed nothing more, and nothing is left to a lease that has to lapse
    (told,) = worker.events("worker_stopping")
    stopped_at = datetime.fromisoformat(told["timestamp"])
    late = [
        event
        for one in (*held, endless, *backlog)
        for event in system.engine.store.get_events(one)
        if event.kind == "node.started" and event.at > stopped_at
    ]
    assert late == []
    assert [system.statuses(one) for one in held] == [{"a": "completed", "b": "queued"}] * 2
    runs = system.engine.store.get_node_results(endless)
    assert {(run.status, run.recovery_attempts, run.attempt) for run in runs} == {(NodeStatus.QUEUED, 0, 1)}
    open_runs = system.engine.store.stats().open_node_runs
    assert open_runs.get(NodeStatus.RUNNING, 0) == 0
    assert open_runs[NodeStatus.QUEUED] > 20
    assert len(worker.events("grace_is_over")) == 1
    assert worker.events("jobs_not_put_back") == []
    # and another one runs all that is left, at once
    with worker_processes(*command, "--grace", "0.5", "--concurrency", "8") as (other,):
        until(lambda: len(system.ran(endless)) == 4)
        assert [entry.split(":")[2] for entry in _traces(system, endless)[2:]] == [str(other.pid)] * 2
        assert [system.engine.wait(one, timeout=30).output for one in held] == ["b", "b"]
        assert [system.engine.wait(one, timeout=30).output for one in backlog] == list(range(BACKLOG))
        system.engine.cancel_execution(endless)
    assert all(system.ran(one) == ["a"] for one in backlog)


def _traces(system: System, execution_id: str) -> list[str]:
    return [entry.decode() for entry in system.redis.lrange(f"ran:{execution_id}", 0, -1)]


@pytest.mark.stores("sqlite", "postgres", why="an in-memory store has no worker processes to kill")
def test_a_killed_worker_loses_nothing(idle_system: System) -> None:
    system = idle_system
    workflow_id = system.register({"id": "a", "type": "gate", "config": {"gate": "kill"}})
    execution_id = system.engine.enqueue_workflow(workflow_id)
    victim = WorkerProcess(system.store_url, system.redis_url, "--lease", "1")
    victim.wait_ready()
    system.arrived("kill")
    victim.send(signal.SIGKILL)
    victim.wait()

    with worker_processes(1, system.store_url, system.redis_url, "--lease", "1"):
        system.arrived("kill")
        system.open_gate("kill")
        execution = system.engine.wait(execution_id, timeout=30)

    assert execution.output == "a"
    (run,) = system.engine.store.get_node_results(execution_id)
    assert (run.recovery_attempts, run.attempt) == (1, 1)


def test_a_flushed_redis_loses_nothing(system: System) -> None:
    gate = f"flush-{system.kind}"
    workflow_id = system.register(
        {"id": "a", "type": "gate", "config": {"gate": gate}},
        *[{"id": f"b{number}", "type": "name", "inputs": ["a"]} for number in range(30)],
    )
    ids = system.engine.enqueue_workflows(workflow_id, range(8))
    later = system.engine.enqueue_workflow(workflow_id, delay=1.0)
    for _ in range(8):
        system.arrived(gate)

    system.redis.flushall()
    system.open_gate(gate, times=9)

    for execution_id in [*ids, later]:
        assert system.engine.wait(execution_id, timeout=60).status is ExecutionStatus.COMPLETED


@pytest.mark.one_in(2)
@pytest.mark.parametrize("lost", LOST)
def test_a_backlog_that_redis_lost_is_back_and_each_of_it_runs_once(idle_system: System, lost: int) -> None:
    system = idle_system
    workflow_id = system.register({"id": "a", "type": "echo"})
    ids = system.engine.enqueue_workflows(workflow_id, range(lost))

    system.redis.flushall()

    with system.working():
        outputs = [system.engine.wait(execution_id, timeout=60).output for execution_id in ids]
    assert outputs == list(range(lost))
    assert all(system.ran(execution_id) == ["a"] for execution_id in ids)


@pytest.mark.one_in(2)
def test_rq_info_shows_queues_workers_and_failed_jobs_as_they_are(idle_system: System) -> None:
    system = idle_system
    bad = system.register({"id": "bad", "type": "unserialisable"})
    slow = system.register({"id": "slow", "type": "gate", "config": {"gate": "rq"}})
    with _workers(system, 1, concurrency=2) as workers:
        system.engine.wait(system.engine.enqueue_workflow(bad), timeout=30)
        held = [system.engine.enqueue_workflow(slow) for _ in range(3)]
        system.arrived("rq")
        system.arrived("rq")

        shown = _rq_info(system)

        assert "spanloom.default 1, 2 executing, 0 finished, 1 failed" in shown, shown
        assert workers[0].name if system.kind == "memory" else str(workers[0].pid) in shown
        (rq_worker,) = Worker.all(connection=system.redis)
        assert "spanloom.default" in rq_worker.queue_names()
        assert rq_worker.failed_job_count == 1
        registry = FailedJobRegistry("spanloom.default", connection=system.redis, serializer="json")
        (job_id,) = registry.get_job_ids()
        job = Job.fetch(job_id, connection=system.redis, serializer="json")
        assert job.is_failed
        assert "'bad'" in str(job.latest_result().exc_string)  # type: ignore[union-attr]

        system.open_gate("rq", times=3)
        for execution_id in held:
            assert system.engine.wait(execution_id, timeout=30).status is ExecutionStatus.COMPLETED
        assert _rq_info(system).count("0 executing") >= 1
    assert Worker.all(connection=system.redis) == []
    assert Queue("spanloom.default", connection=system.redis).count == 0


@pytest.mark.stores("sqlite", why="what RQ's tools tell workers has nothing to do with the store")
def test_rq_suspend_pauses_a_worker_until_rq_resume(idle_system: System) -> None:
    system = idle_system
    gated = system.register({"id": "a", "type": "gate", "config": {"gate": "rest"}})
    workflow_id = system.register({"id": "a", "type": "echo"})
    with worker_processes(1, system.store_url, system.redis_url, "--lease", "1s") as (worker,):
        running = system.engine.enqueue_workflow(gated)
        system.arrived("rest")
        _rq(system, "suspend")
        until(lambda: worker.events("worker_suspended"))

        ids = system.engine.enqueue_workflows(workflow_id, range(20))
        system.open_gate("rest")

        assert system.engine.wait(running, timeout=30).output == "a"  # what runs goes on
        with pytest.raises(WaitTimeout):
            system.engine.wait(ids[0], timeout=1.0)  # what is tried is a time: it rests
        assert [system.ran(one) for one in ids] == [[]] * 20
        _rq(system, "resume")
        assert [system.engine.wait(one, timeout=30).output for one in ids] == list(range(20))
        assert len(worker.events("worker_resumed")) == 1


def test_a_foreign_job_on_our_queue_is_refused_and_never_run(system: System) -> None:
    target = f"owned-{system.kind}"
    queue = Queue("spanloom.default", connection=system.redis, serializer="json")
    job = queue.enqueue("os.putenv", target, "1", failure_ttl=600)

    execution = system.run(system.register({"id": "a", "type": "echo"}), 1)

    assert execution.output == 1
    until(lambda: job.get_status() == "failed")
    registry = FailedJobRegistry("spanloom.default", connection=system.redis, serializer="json")
    assert job.id in registry.get_job_ids()
    registry.remove(job, delete_job=True)


def _workers(system: System, count: int, lease: float = 15.0, concurrency: int = 4):  # type: ignore[no-untyped-def]
    if system.kind == "memory":
        return system.engine.start_workers(count, lease_seconds=lease, concurrency=concurrency)
    options = ("--lease", str(lease), "--concurrency", str(concurrency))
    return worker_processes(count, system.store_url, system.redis_url, *options)


def _rq_info(system: System) -> str:
    return _rq(system, "info", "--raw")


def _rq(system: System, *arguments: str) -> str:
    command = [sys.executable, "-m", "rq.cli", *arguments, "--url", system.redis_url]
    found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout


def _lease_of(system: System, worker_id: str) -> float:
    live = system.engine.store.list_workers()
    return next((worker.lease_until.timestamp() for worker in live if worker.worker_id == worker_id), 0.0)
