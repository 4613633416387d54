"""When a worker requests its replacement: after so many nodes, drawn anew by each process, or beyond so much memory."""

from __future__ import annotations

import mmap

import pytest

from spanloom.worker import WorkerOptions
from spanloom.worker.watch import recycling
from spanloom.worker.watch.recycling import Recycling, private_bytes


def nodes_until_the_end(options: WorkerOptions) -> int:
    ends: list[int] = []
    counted = Recycling(options, "w", lambda: ends.append(counted.ran))
    while not ends:
        counted.count(1)
    counted.count(1000)
    assert len(ends) == 1, "once"
    return ends[0]


def test_each_process_draws_a_number_up_to_a_tenth_below_the_limit() -> None:
    drawn = {nodes_until_the_end(WorkerOptions(max_nodes=100)) for _ in range(200)}

    assert min(drawn) >= 90
    assert max(drawn) <= 100
    assert len(drawn) > 3
    assert nodes_until_the_end(WorkerOptions(max_nodes=1)) == 1


def test_memory_is_measured_after_nodes_and_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = 0

    def measure() -> int:
        nonlocal measured
        measured += 1
        return 10**9

    monkeypatch.setattr(recycling, "private_bytes", measure)
    ends: list[str] = []
    counted = Recycling(WorkerOptions(max_memory="1GB"), "w", lambda: ends.append("end"))  # type: ignore[arg-type]

    for _ in range(1000):
        counted.count(1)

    assert measured == 1
    assert ends == [], "not more than that"


def test_memory_that_is_allocated_counts() -> None:
    size = 30_000_000
    before = private_bytes()
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as kept:  # never what was freed before
        for page in range(0, size, mmap.PAGESIZE):
            kept[page] = 1

        assert size * 0.9 < private_bytes() - before < size * 1.4
