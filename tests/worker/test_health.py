"""When a worker calls itself stuck, and that it does not for what hangs elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer

from spanloom.engine import Node, NodeRegistry, StoreUnavailable, Workflow, WorkflowEngine
from spanloom.stores import InMemoryExecutionStore
from spanloom.worker.process.health import Health


class Gated(InMemoryExecutionStore):
    """A store whose claims, or health, can be made to hang or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.claims = threading.Event()
        self.answers = threading.Event()
        self.claims.set()
        self.answers.set()
        self.broken: Exception | None = None
        self.swept_badly: Exception | None = None
        self.asked = 0

    def sweep(self, **options: Any) -> Any:
        if self.swept_badly is not None:
            raise self.swept_badly
        return super().sweep(**options)

    def claim(self, *args: Any, **kwargs: Any) -> Any:
        self.claims.wait(30)
        return super().claim(*args, **kwargs)

    def health(self) -> None:
        self.asked += 1
        self.answers.wait(30)
        if self.broken is not None:
            raise self.broken


@pytest.fixture
def store() -> Iterator[Gated]:
    made = Gated()
    yield made
    made.claims.set()
    made.answers.set()


@pytest.fixture
def health(store: Gated) -> Iterator[Health]:
    registry = NodeRegistry()

    @registry.node("echo")
    def echo(data: Any) -> Any:
        return data

    engine = WorkflowEngine(registry, store, FakeRedis(server=FakeServer()))
    with engine, engine.start_workers(1) as (worker,):
        engine.register_workflow(Workflow(id="w", nodes=(Node(id="a", type="echo"),)))
        yield Health(worker)
        store.claims.set()
        store.answers.set()


def until(condition: Callable[[], object], timeout: float = 20) -> None:
    end, pause = time.monotonic() + timeout, threading.Event()
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        pause.wait(0.02)


def start(health: Health) -> None:
    health._worker.engine.enqueue_workflow("w")


def test_a_loop_that_does_not_go_round_is_stuck(health: Health, store: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    assert health.liveness() == {}
    monkeypatch.setattr("spanloom.worker.process.health._STUCK_SECONDS", 0.3)
    store.claims.clear()
    start(health)

    until(lambda: "its loop has not gone round for" in health.liveness().get("worker", ""))

    store.claims.set()
    until(lambda: health._worker.seconds_since_last_loop < 0.3 and health.liveness() == {})


def test_a_loop_that_waits_for_a_store_that_hangs_is_not_stuck(
    health: Health, store: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spanloom.worker.process.health._STUCK_SECONDS", 0.3)
    store.claims.clear()
    store.answers.clear()
    start(health)
    until(lambda: health._worker.seconds_since_last_loop > 0.4)

    assert health.liveness() == {}
    assert health.readiness() == {"store": "it did not answer within 1.5 s"}


def test_a_store_that_hangs_is_asked_once_however_many_want_to_know(health: Health, store: Gated) -> None:
    store.answers.clear()

    asking = [threading.Thread(target=health.readiness) for _ in range(5)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()

    assert store.asked == 1


def test_what_is_wrong_is_told_and_a_drivers_own_words_are_not(health: Health, store: Gated) -> None:
    store.broken = StoreUnavailable("the store is away")
    assert health.readiness() == {"store": "the store is away"}
    store.broken = RuntimeError("password=secret")
    until(lambda: health.readiness() == {"store": "it fails with RuntimeError"})
    store.broken = None
    until(lambda: health.readiness() == {})


def test_sweeps_that_fail_are_a_reason_not_to_be_ready(
    health: Health, store: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spanloom.worker.sweeper._PATIENCE_SECONDS", 0.2)
    store.swept_badly = RuntimeError("password=secret")
    until(lambda: "it fails with RuntimeError" in health.readiness().get("sweep", ""))
    assert "secret" not in str(health.readiness())
    store.swept_badly = None
    until(lambda: health.readiness() == {})
