"""Ids are UUIDs of version 7 that rise within a process and differ between processes."""

from __future__ import annotations

import os
import threading
import time
import uuid

import pytest

from spanloom.engine.ids import uuid7


def test_the_layout_is_that_of_rfc_9562() -> None:
    made = uuid.UUID(uuid7(now_ms=0x017F22E279B0, rand=(0xCC3 << 62) | 0x18C4DC0C0C07398F))
    assert str(made) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"  # the example in appendix A.6
    assert made.version == 7
    assert made.variant == uuid.RFC_4122


def test_the_time_is_now_in_milliseconds() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid.UUID(uuid7()).int >> 80
    assert before <= made <= time.time_ns() // 1_000_000 + 1


def test_ids_of_one_process_rise() -> None:
    made = [uuid7() for _ in range(20_000)]
    assert made == sorted(set(made))


def test_a_clock_that_goes_back_does_not_turn_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    first = uuid7()
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    assert uuid7() > first


def test_given_numbers_leave_the_sequence_alone() -> None:
    far_future = uuid7(now_ms=2**48 - 1, rand=0)
    assert uuid7() < far_future


def test_threads_never_get_the_same_id() -> None:
    made: list[list[str]] = []
    threads = [threading.Thread(target=lambda: made.append([uuid7() for _ in range(2_000)])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one for some in made for one in some}) == 16_000


def test_a_forked_child_goes_on_with_a_sequence_of_its_own() -> None:
    uuid7()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, "".join(uuid7() for _ in range(100)).encode())
        os._exit(0)
    os.close(writer)
    ours = {uuid7() for _ in range(100)}
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    theirs = {text[start : start + 36] for start in range(0, len(text), 36)}
    assert len(theirs) == 100
    assert not ours & theirs
