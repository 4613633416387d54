"""What a worker process tells by HTTP: metrics that agree with what happened, and health that follows the services."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from http.client import HTTPException
from pathlib import Path

import pytest

from e2e.support.endpoints import free_ports, get, problems, scrape, value
from e2e.support.harness import System, WorkerProcess, until, worker_processes
from e2e.support.harness import system as new_system
from e2e.support.receivers import otlp_receiver
from spanloom.testing.servers import PostgresServer, RedisServer
from spanloom.worker import WorkerOptions

FAST = ("--lease", "1")
AT_ONCE_SECONDS = 4.0  # for several answers, of which one waits for 1.5 s


@pytest.fixture
def system(own_redis: RedisServer, tmp_path: Path) -> Iterator[System]:
    with new_system("sqlite", f"sqlite:///{tmp_path}/spanloom.db", own_redis.url, workers=0) as made:
        yield made


@pytest.mark.stores("sqlite", "postgres", why="an in-memory store has no worker processes to scrape")
def test_what_is_scraped_is_what_happened(idle_system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    system = idle_system
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")
    retry = {"max_attempts": 2, "delay": 0.01}
    good = system.register(
        {"id": "a", "type": "flaky", "config": {"succeeds_at": 2}, "retry": retry},
        {"id": "b", "type": "name", "inputs": ["a"]},
        {"id": "c", "type": "name", "inputs": ["a"]},
        {"id": "join", "type": "count", "inputs": ["b", "c"]},
        name="good",
    )
    bad = system.register({"id": "a", "type": "boom", "retry": {"max_attempts": 1}}, name="bad")
    port = free_ports()
    with otlp_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        with worker_processes(1, system.store_url, system.redis_url, "--metrics-port", str(port), "--name", "w-1"):
            for _ in range(3):
                assert system.run(good).output == 2
            failed = system.run(bad)
            until(lambda: value(scrape(port), "spanloom_executions_ended_total") == 4)
            samples = scrape(port)
            ended = receiver.wait(
                lambda: [
                    point
                    for point in receiver.points
                    if (point.name, point.value) == ("spanloom.executions.ended", 3)
                    and point.attributes["spanloom.workflow.id"] == good
                ]
            )

    assert failed.status == "failed"
    runs = partial(value, samples, "spanloom_node_runs_total")
    assert runs(spanloom_node_type="flaky", spanloom_node_outcome="retry", error_type="ConnectionError") == 3
    assert runs(spanloom_node_type="flaky", spanloom_node_outcome="completed") == 3
    assert runs(spanloom_node_type="name", spanloom_node_outcome="completed") == 6
    assert runs(spanloom_node_type="count", spanloom_node_outcome="completed") == 3
    assert runs(spanloom_node_type="boom", spanloom_node_outcome="failed") == 1
    assert value(samples, "spanloom_node_duration_seconds_count") == runs() == 16
    ends = partial(value, samples, "spanloom_executions_ended_total")
    assert ends(spanloom_workflow_id=good, spanloom_execution_status="completed") == 3
    assert ends(spanloom_workflow_id=bad, spanloom_execution_status="failed") == 1
    waits = value(samples, "spanloom_queue_wait_time_seconds_count", messaging_destination_name="spanloom.default")
    assert 4 <= waits < 16  # a worker goes on at once with what follows
    assert value(samples, "spanloom_store_call_duration_seconds_count", spanloom_store_operation="record") >= 4
    assert value(samples, "spanloom_sweep_moved_total", spanloom_sweep_cause="retry") >= 1
    assert value(samples, "target_info", service_name="spanloom-worker", service_instance_id="w-1") == 1
    assert value(samples, "spanloom_worker_slots") == WorkerOptions().concurrency
    # The same provider has a second reader, and both were told.
    assert [point.resource["service.instance.id"] for point in ended] == ["w-1"]


def test_readiness_follows_redis(system: System, own_redis: RedisServer) -> None:
    port = free_ports()
    with worker_processes(1, system.store_url, system.redis_url, "--metrics-port", str(port), *FAST):
        until(lambda: problems(port) == {})
        own_redis.kill()
        until(lambda: list(problems(port)) == ["queue"])
        until(lambda: "Redis at" in problems(port)["queue"])
        assert problems(port, "/healthz") == {}
        own_redis.start()
        until(lambda: problems(port) == {})
        assert system.run(system.register({"id": "a", "type": "echo"}), 1).output == 1


def test_readiness_follows_postgres_and_waits_for_nothing_that_hangs(
    postgres_url: str, postgres_server: PostgresServer, own_redis: RedisServer
) -> None:
    port = free_ports()
    with (
        new_system("postgres", postgres_url, own_redis.url, workers=0),
        worker_processes(1, postgres_url, own_redis.url, "--metrics-port", str(port), *FAST),
    ):
        until(lambda: problems(port) == {})
        postgres_server.stop()
        until(lambda: list(problems(port)) == ["store"])
        postgres_server.start()
        until(lambda: problems(port) == {})

        os.kill(own_redis.pid, signal.SIGSTOP)
        try:
            until(lambda: "queue" in problems(port))

            def asked_seconds() -> float:
                began = time.monotonic()
                assert "did not answer" in problems(port)["queue"]
                assert problems(port, "/healthz") == {}
                assert get(port, "/metrics")[0] == 200
                return time.monotonic() - began

            assert any(asked_seconds() < AT_ONCE_SECONDS for _ in range(3))
        finally:
            os.kill(own_redis.pid, signal.SIGCONT)
        until(lambda: problems(port) == {})


def test_a_worker_that_drains_is_alive_and_not_ready(system: System) -> None:
    port = free_ports()
    with worker_processes(1, system.store_url, system.redis_url, "--metrics-port", str(port)) as (worker,):
        execution_id = system.engine.enqueue_workflow(
            system.register({"id": "a", "type": "gate", "config": {"gate": "drain"}})
        )
        system.arrived("drain")
        assert value(scrape(port), "spanloom_worker_claims") == 1

        worker.send(signal.SIGTERM)

        until(lambda: problems(port) == {"worker": "it is draining"})
        assert problems(port, "/healthz") == {}
        system.open_gate("drain")
        assert worker.wait() == 0
        assert system.engine.wait(execution_id, timeout=10).output == "a"


def test_each_process_has_a_port_of_its_own_and_who_replaces_it_gets_it(system: System) -> None:
    port = free_ports(2)
    options = ("--processes", "2", "--metrics-port", str(port), "--lease", "3")
    supervisor = WorkerProcess(system.store_url, system.redis_url, *options)

    def instance(number: int) -> str | None:
        """Which one answers there and is ready."""
        try:
            if problems(port + number):
                return None
            (found,) = [one.labels["service_instance_id"] for one in scrape(port + number) if one.name == "target_info"]
        except (OSError, HTTPException):
            return None
        return found

    try:
        before: list[str | None] = []

        def both_answer() -> bool:
            before[:] = instance(0), instance(1)
            return None not in before

        until(both_answer)
        first, second = before
        pids = {worker.name: worker.pid for worker in system.engine.store.list_workers()}

        os.kill(pids[str(second)], signal.SIGKILL)

        until(lambda: instance(1) not in (None, first, second))
        until(lambda: instance(0) == first)
    finally:
        assert supervisor.stop() == 0


def test_a_port_that_is_taken_ends_the_command_with_two(system: System) -> None:
    port = free_ports(3)
    with worker_processes(1, system.store_url, system.redis_url, "--metrics-port", str(port + 1)):
        second = WorkerProcess(system.store_url, system.redis_url, "--metrics-port", str(port + 1))
        assert second.wait(30) == 2
        fleet = WorkerProcess(system.store_url, system.redis_url, "--processes", "2", "--metrics-port", str(port))
        assert fleet.wait(30) == 2

    for made in (second, fleet):
        assert f"can't serve metrics on 127.0.0.1:{port + 1} (Address already in use)" in made.log
        assert "Traceback" not in made.log


def test_what_is_not_there_is_said_and_a_client_that_hangs_keeps_no_worker(system: System) -> None:
    port = free_ports()
    with worker_processes(1, system.store_url, system.redis_url, "--metrics-port", str(port)) as (worker,):
        assert get(port, "/") == (404, "/metrics, /healthz, /readyz\n")
        with socket.create_connection(("127.0.0.1", port)):
            began = time.monotonic()
            assert worker.stop() == 0
            assert time.monotonic() - began < 5
