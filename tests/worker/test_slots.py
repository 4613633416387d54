"""Slots: threads that run nodes, also where the system gives fewer of them than asked for."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from spanloom.worker.slots import Slots


def no_thread(*_: Any) -> None:
    raise RuntimeError("can't start new thread")


def test_work_waits_for_a_thread_that_is_there_if_the_system_gives_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    slots, gate, ran = Slots(3, "test"), threading.Event(), []
    slots.submit(gate.wait)
    monkeypatch.setattr(threading.Thread, "start", no_thread)

    slots.submit(lambda: ran.append(1))
    slots.submit(lambda: ran.append(2))

    assert slots.busy == 3
    gate.set()
    assert slots.wait_idle(10)
    assert ran == [1, 2]
    monkeypatch.undo()
    slots.close()


def test_a_slot_that_no_thread_can_serve_stays_free(monkeypatch: pytest.MonkeyPatch) -> None:
    slots, ran = Slots(1, "test"), threading.Event()
    with monkeypatch.context() as without:
        without.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="new thread"):
            slots.submit(ran.set)
    assert slots.busy == 0

    slots.submit(ran.set)

    assert ran.wait(10)
    assert slots.wait_idle(10)
    slots.close()
