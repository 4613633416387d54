"""Slots count what they run, whatever becomes of it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import pytest

from spanloom.worker.slots import Slots


@pytest.fixture
def slots() -> Iterator[Slots]:
    made = Slots(3, "test")
    yield made
    made.close()


class Scarce(threading.Thread):
    """A thread of a system that gives so many and no more."""

    left = 0

    def start(self) -> None:
        if Scarce.left <= 0:
            raise RuntimeError("can't start new thread")
        Scarce.left -= 1
        super().start()


def test_work_that_gets_no_thread_of_its_own_is_done_by_one_that_there_is(
    slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scarce, "left", 1)
    monkeypatch.setattr(threading, "Thread", Scarce)
    gate, done = threading.Event(), queue.SimpleQueue[int]()
    slots.submit(lambda: (gate.wait(10), done.put(1))[1])
    slots.submit(lambda: done.put(2))
    assert slots.busy == 2

    gate.set()

    assert [done.get(timeout=10), done.get(timeout=10)] == [1, 2]
    assert slots.wait_idle(10)


def test_a_system_without_any_thread_is_an_error_and_costs_no_slot(
    slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scarce, "left", 0)
    monkeypatch.setattr(threading, "Thread", Scarce)
    with pytest.raises(RuntimeError):
        slots.submit(lambda: None)
    assert slots.busy == 0
    assert slots.wait_free(0) == 3


def test_work_that_raises_leaves_its_slot_usable(slots: Slots) -> None:
    def broken() -> None:
        raise SystemExit("no handler's, but ours")

    done = threading.Event()
    for _ in range(3):
        slots.submit(broken)
    assert slots.wait_idle(10)

    slots.submit(done.set)

    assert done.wait(10)
    assert slots.wait_idle(10)
