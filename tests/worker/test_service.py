"""The phases of a worker and the order in which its parts start and stop."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from spanloom.engine import NodeRegistry, WorkflowEngine
from spanloom.engine.errors import StoreUnavailable
from spanloom.stores import InMemoryExecutionStore
from spanloom.worker import Worker
from spanloom.worker.service import Periodic, Phase, WorkerState, running


class Part:
    """A service that notes what becomes of it."""

    def __init__(self, name: str, seen: list[str], *, broken: bool = False) -> None:
        self._name, self._seen, self._broken = name, seen, broken

    def start(self) -> None:
        if self._broken:
            raise StoreUnavailable("gone")
        self._seen.append(f"+{self._name}")

    def stop(self) -> None:
        self._seen.append(f"-{self._name}")


def test_a_phase_is_reached_once_and_never_left_backwards() -> None:
    state = WorkerState()

    assert state.phase is Phase.STARTING
    assert state.advance(Phase.DRAINING)
    assert not state.advance(Phase.DRAINING)
    assert not state.advance(Phase.WORKING)
    assert state.phase is Phase.DRAINING
    assert (state.draining, state.aborting) == (True, False)


def test_whoever_waits_for_a_phase_is_woken_by_a_later_one() -> None:
    state, woken = WorkerState(), threading.Event()

    def wait() -> None:
        assert state.wait_for(Phase.DRAINING)
        woken.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert not state.wait_for(Phase.WORKING, 0.01)
    state.advance(Phase.WORKING)
    assert not woken.wait(0.05)
    state.advance(Phase.STOPPED)
    assert woken.wait(10)


def test_services_stop_in_reverse_also_if_one_of_them_does_not_start() -> None:
    seen: list[str] = []
    parts = [Part("a", seen), Part("b", seen), Part("c", seen, broken=True), Part("d", seen)]
    with pytest.raises(StoreUnavailable), ExitStack() as stack:
        for part in parts:
            stack.enter_context(running(part))

    assert seen == ["+a", "+b", "-b", "-a"]


def test_a_periodic_service_comes_again_until_it_is_stopped() -> None:
    turns, enough = [0], threading.Event()

    def turn() -> float:
        turns[0] += 1
        if turns[0] == 3:
            enough.set()
        return 0.0

    with running(Periodic("turns", turn, first_pause=0.0)):
        assert enough.wait(10)
    ended = turns[0]
    assert not threading.Event().wait(0.02)
    assert turns[0] == ended


def test_a_worker_that_cannot_start_leaves_no_lease_and_no_thread(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = InMemoryExecutionStore()
    before = set(threading.enumerate())
    with WorkflowEngine(NodeRegistry(), store, redis_url) as engine:
        worker = Worker(engine)

        def refuse(name: str) -> None:
            assert len(store.list_workers()) == 1
            raise StoreUnavailable("gone")

        monkeypatch.setattr(worker._sweeper.started_jobs, "clean", refuse)
        with pytest.raises(StoreUnavailable):
            worker.run()
        assert store.list_workers() == []
    assert worker.state.phase is Phase.STOPPED
    assert {thread.name for thread in set(threading.enumerate()) - before if thread.is_alive()} == set()
