"""Group commit: together what ends together, everyone their own answer, nothing lost while the store is away."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from spanloom.engine.errors import StoreUnavailable
from spanloom.engine.store.requests import Outcome, RecordRequest, RecordResult
from spanloom.worker.node.recorder import Recorder
from spanloom.worker.service import Phase, WorkerState


class Store:
    """Just enough of a store: answers each record with a job list of its own, as it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.failures: list[Exception] = []
        self.bad: set[str] = set()

    def record(self, records: Sequence[RecordRequest], *, epoch: int = 0) -> list[RecordResult]:
        self.entered.set()
        assert self.open.wait(30)
        self.batches.append([record.node_id for record in records])
        if self.failures:
            raise self.failures.pop(0)
        if any(record.node_id in self.bad for record in records):
            raise ValueError(f"bad {[record.node_id for record in records]}")
        return [RecordResult(recorded=record.fence == 1) for record in records]


def record(node_id: str, fence: int = 1) -> RecordRequest:
    return RecordRequest("e", node_id, 0, fence, "w", Outcome.COMPLETED)


def recorder(store: Store, state: WorkerState | None = None) -> Recorder:
    return Recorder(store, lambda: 1, state or WorkerState())  # type: ignore[arg-type]


def in_threads(made: Recorder, records: Sequence[RecordRequest]) -> dict[str, Any]:
    answers: dict[str, Any] = {}

    def one(item: RecordRequest) -> None:
        try:
            answers[item.node_id] = made.record(item)
        except Exception as error:  # the test looks at it
            answers[item.node_id] = error

    threads = [threading.Thread(target=one, args=(item,)) for item in records]
    for thread in threads:
        thread.start()
    answers["threads"] = threads
    return answers


def test_what_ends_during_a_commit_is_committed_together_by_the_next() -> None:
    store = Store()
    made = recorder(store)
    store.open.clear()
    first = in_threads(made, [record("first")])
    assert store.entered.wait(30)

    rest = in_threads(made, [record(f"n{number}", fence=1 + number % 2) for number in range(20)])
    while len(made._waiting) < 20:
        threading.Event().wait(0.001)
    store.open.set()
    for thread in [*first.pop("threads"), *rest.pop("threads")]:
        thread.join(30)

    assert [len(batch) for batch in store.batches] == [1, 20]
    assert {node: answer.recorded for node, answer in rest.items()} == {
        f"n{number}": number % 2 == 0 for number in range(20)
    }


def test_one_bad_record_fails_itself_and_not_its_neighbours() -> None:
    store = Store()
    store.bad = {"bad"}
    made = recorder(store)
    store.open.clear()
    first = in_threads(made, [record("first")])
    assert store.entered.wait(30)
    rest = in_threads(made, [record("good"), record("bad"), record("fine")])
    while len(made._waiting) < 3:
        threading.Event().wait(0.001)

    store.open.set()
    for thread in [*first.pop("threads"), *rest.pop("threads")]:
        thread.join(30)

    assert rest["good"].recorded
    assert rest["fine"].recorded
    assert isinstance(rest["bad"], ValueError)


def test_a_record_waits_for_a_store_that_is_away() -> None:
    store = Store()
    store.failures = [StoreUnavailable("gone"), StoreUnavailable("gone")]

    assert recorder(store).record(record("a")).recorded
    assert store.batches == [["a"]] * 3


def test_a_worker_that_aborts_does_not_wait_for_the_store() -> None:
    store = Store()
    store.failures = [StoreUnavailable("gone")]
    state = WorkerState()
    state.advance(Phase.ABORTING)

    with pytest.raises(StoreUnavailable):
        recorder(store, state).record(record("a"))


def test_more_than_one_batch_of_waiting_records_is_answered() -> None:
    store = Store()
    made = recorder(store)
    store.open.clear()
    answers = in_threads(made, [record(f"n{number}") for number in range(250)])
    while len(made._waiting) < 150:
        threading.Event().wait(0.001)

    store.open.set()
    for thread in answers.pop("threads"):
        thread.join(30)

    assert len(answers) == 250
    assert all(answer.recorded for answer in answers.values())
    assert max(len(batch) for batch in store.batches) <= 100
