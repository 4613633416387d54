"""Group commit: together what ends together, everyone their own answer, nothing lost while the store is away."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from spanloom.engine.errors import (
    ConfigurationError,
    SpanloomError,
    StoreNotMigrated,
    StoreUnavailable,
    Unavailability,
)
from spanloom.engine.store.requests import LogLine, Outcome, RecordRequest, RecordResult
from spanloom.worker.recording.recorder import Recorder
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
        self.refused: dict[str, SpanloomError] = {}  # answered in place of their records, by node

    def record(self, records: Sequence[RecordRequest], *, epoch: int = 0) -> list[RecordResult]:
        self.entered.set()
        assert self.open.wait(30)
        self.batches.append([record.node_id for record in records])
        if self.failures:
            raise self.failures.pop(0)
        if any(record.node_id in self.bad for record in records):
            raise ValueError(f"bad {[record.node_id for record in records]}")
        return [
            RecordResult(recorded=record.fence == 1 and record.node_id not in self.refused, error=error)
            for record in records
            for error in [self.refused.get(record.node_id)]
        ]


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


def test_large_records_are_sent_in_batches_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spanloom.worker.recording.recorder.MAX_BATCH_BYTES", 1_000)
    store = Store()
    made = recorder(store)
    store.open.clear()
    first = in_threads(made, [record("first")])
    assert store.entered.wait(30)
    line = LogLine("info", "x" * 400, datetime.now(UTC))
    rest = in_threads(
        made,
        [
            *(record(f"data{number}")._replace(data="x" * 402) for number in range(3)),
            *(record(f"lines{number}")._replace(logs=[line]) for number in range(2)),
            record("larger than a batch")._replace(data="x" * 5_000),
        ],
    )
    while len(made._waiting) < 6:
        threading.Event().wait(0.001)
    store.open.set()
    for thread in [*first.pop("threads"), *rest.pop("threads")]:
        thread.join(30)

    assert all(answer.recorded for answer in rest.values())
    assert sum(map(len, store.batches)) == 7
    assert max(map(len, store.batches)) == 2
    assert ["larger than a batch"] in store.batches


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


@pytest.mark.parametrize(
    "error",
    [
        OSError(24, "Too many open files"),
        MemoryError(),
        ConfigurationError("no right"),
        StoreNotMigrated("s", "1", "2"),
    ],
)
def test_a_record_waits_for_what_is_no_fault_of_its_own(error: Exception) -> None:
    store = Store()
    store.failures = [error, error]

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


FULL = StoreUnavailable("the disk is full", reason=Unavailability.RESOURCES)


def held_up(store: Store, made: Recorder, *nodes: str) -> dict[str, Any]:
    """Let records of these nodes wait while another one is committed, so that they are one batch; then go on."""
    store.open.clear()
    first = in_threads(made, [record("first")])
    assert store.entered.wait(30)
    rest = in_threads(made, [record(node) for node in nodes])
    while len(made._waiting) < len(nodes):
        threading.Event().wait(0.001)
    store.open.set()
    rest["threads"] += first["threads"]
    return rest


def joined(answers: dict[str, Any], *nodes: str) -> None:
    """Wait until these records are answered."""
    while not set(nodes) <= set(answers):
        threading.Event().wait(0.001)


def test_a_record_that_is_refused_for_a_while_waits_alone() -> None:
    store = Store()
    made = recorder(store)
    store.refused = {"bad": FULL}

    answers = held_up(store, made, "good", "bad", "fine")
    joined(answers, "good", "fine")
    assert made.record(record("later")).recorded
    assert "bad" not in answers
    store.refused = {}
    for thread in answers.pop("threads"):
        thread.join(30)

    assert answers["bad"].recorded
    assert all(batch == ["bad"] for batch in store.batches if "bad" in batch and len(batch) < 3)


def test_a_batch_of_which_nothing_is_served_is_tried_one_by_one() -> None:
    store = Store()
    made = recorder(store)

    def fail_together(records: Sequence[RecordRequest], *, epoch: int = 0) -> list[RecordResult]:
        if any(one.node_id == "bad" for one in records):
            store.batches.append([one.node_id for one in records])
            raise FULL
        return Store.record(store, records, epoch=epoch)

    store.record = fail_together  # type: ignore[method-assign]
    answers = held_up(store, made, "good", "bad", "fine")
    joined(answers, "good", "fine")
    del store.record  # type: ignore[method-assign]
    for thread in answers.pop("threads"):
        thread.join(30)

    assert answers["bad"].recorded
    assert answers["good"].recorded


def test_a_record_that_makes_no_way_while_others_are_served_is_given_up() -> None:
    store = Store()
    store.refused = {"bad": FULL}
    served = threading.Event()
    made = Recorder(
        store,  # type: ignore[arg-type]
        lambda: 1,
        WorkerState(),
        served_at=lambda: float("inf") if served.is_set() else 0.0,
        patience_seconds=0.0,
    )
    answers = in_threads(made, [record("bad")])
    while len(store.batches) < 3:  # nothing else is served either: it waits
        threading.Event().wait(0.001)
    assert "bad" not in answers

    served.set()
    for thread in answers.pop("threads"):
        thread.join(30)

    assert answers["bad"] is FULL


def test_records_of_a_store_that_is_away_wait_together() -> None:
    store = Store()
    made = recorder(store)
    store.failures = []
    answers = held_up(store, made, *"abc")
    for thread in answers.pop("threads"):
        thread.join(30)
    store.batches.clear()
    store.failures = [StoreUnavailable("gone")]
    assert made.record(record("d")).recorded
    assert store.batches == [["d"], ["d"]]
