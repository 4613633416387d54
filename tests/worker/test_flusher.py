"""Lines of long nodes reach the store while they run: all of them, once, in order, whatever the store does."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.context import Context

from spanloom.engine import ExecutionStore, StoreUnavailable
from spanloom.engine.errors import StoreRefused
from spanloom.engine.limits import MAX_LINES
from spanloom.engine.store.requests import Claim, NodeKey, NodeLines
from spanloom.stores import InMemoryExecutionStore
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import fan
from spanloom.worker.service import Phase, WorkerState
from spanloom.worker.telemetry.log_buffer import LogBuffer
from spanloom.worker.telemetry.log_flusher import LogFlusher


class Unreliable:
    """A store that does what the test says with the next calls of add_logs, and then what it should."""

    def __init__(self, store: ExecutionStore) -> None:
        self.store = store
        self.next: list[str] = []
        self.asked: list[list[NodeLines]] = []
        self.asking = threading.Event()
        self.go_on = threading.Event()

    def add_logs(self, asked: Sequence[NodeLines]) -> list[int | None]:
        self.asked.append(list(asked))
        how = self.next.pop(0) if self.next else "works"
        if how == "hangs":
            self.asking.set()
            assert self.go_on.wait(30)
        if how == "away":
            raise StoreUnavailable("the store is away")
        if how == "refuses" and len(asked) > 1:
            raise StoreRefused("one of them is odd")
        answers = self.store.add_logs(asked)
        if how == "loses its answer":
            raise StoreUnavailable("the connection broke")
        return answers


class Stage:
    """Two nodes that run, and a flusher that looks after them."""

    def __init__(self) -> None:
        self.store = InMemoryExecutionStore()
        self.unreliable = Unreliable(self.store)
        self.driver = StoreDriver(self.store)
        self.execution = self.driver.start(fan(2))
        self.driver.run(self.execution, "split")
        self.claims = [self._claim(name) for name in ("w1", "w2")]
        self.lines = [LogBuffer(claim, "a" * 32, "b" * 16, Context()) for claim in self.claims]
        self.state = WorkerState()
        self.log_flusher = LogFlusher(self.unreliable, lambda: self.lines, self.state)  # type: ignore[arg-type]

    def _claim(self, name: str) -> Claim:
        (answer,) = self.store.claim([NodeKey(self.execution, name)], worker_id=self.driver.worker_id)
        assert isinstance(answer, Claim)
        return answer

    def say(self, *messages: str) -> None:
        for message in messages:
            self.lines[0].add("info", message)

    def end(self) -> None:
        """Do what a slot does when its handler has returned."""
        self.lines[0].end(None, final=True)
        self.log_flusher.settle(self.lines[0])
        self.driver.record(self.execution, self.claims[0].node, logs=tuple(self.lines[0].unstored))

    def told(self, node_id: str = "w1") -> list[str]:
        found: list[Any] = []
        while more := self.store.get_logs(self.execution, node_id=node_id, after=found[-1].id if found else 0):
            found += more
        return [line.message for line in found]


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_what_was_flushed_is_not_recorded_again(stage: Stage) -> None:
    stage.say("a", "b")
    stage.log_flusher.flush()
    assert stage.told() == ["a", "b"]
    stage.say("c")
    stage.log_flusher.flush()
    stage.say("d")
    stage.end()

    assert stage.told() == ["a", "b", "c", "d"]


def test_a_node_that_says_nothing_costs_no_call(stage: Stage) -> None:
    stage.log_flusher.flush()
    stage.end()

    assert stage.unreliable.asked == []


@pytest.mark.parametrize("trouble", [["away"], ["loses its answer"], ["away", "loses its answer", "away"]])
@pytest.mark.parametrize("when", ["while it runs", "as it ends"])
def test_trouble_with_the_store_neither_loses_nor_doubles_a_line(stage: Stage, trouble: list[str], when: str) -> None:
    stage.say("same")
    stage.log_flusher.flush()
    stage.unreliable.next = [*trouble]
    stage.say("same", "other")
    stage.log_flusher.flush()
    stage.say("during")
    if when == "while it runs":
        for _ in trouble:
            stage.log_flusher.flush()
        stage.say("last")
    stage.end()

    last = ["last"] if when == "while it runs" else []
    assert stage.told() == ["same", "same", "other", "during", *last]


def test_a_record_waits_for_the_flush_that_is_under_way(stage: Stage) -> None:
    stage.unreliable.next = ["hangs"]
    stage.say("a")
    flushing = threading.Thread(target=stage.log_flusher.flush)
    flushing.start()
    assert stage.unreliable.asking.wait(30)
    stage.say("b")  # a handler is never held up
    ending = threading.Thread(target=stage.end)
    ending.start()
    assert stage.told() == []
    stage.unreliable.go_on.set()
    flushing.join(30)
    ending.join(30)

    assert stage.told() == ["a", "b"]


def test_a_flush_that_comes_as_a_node_ends_leaves_its_lines_to_the_record(stage: Stage) -> None:
    stage.say("a")
    stage.lines[0].end(None, final=True)
    stage.log_flusher.settle(stage.lines[0])
    stage.log_flusher.flush()

    assert stage.unreliable.asked == []
    assert [line.message for line in stage.lines[0].unstored] == ["a"]


def test_lines_of_a_cancelled_execution_come_with_the_record(stage: Stage) -> None:
    stage.say("a")
    stage.log_flusher.flush()
    stage.driver.cancel(stage.execution)
    stage.say("b")
    stage.log_flusher.flush()
    stage.log_flusher.flush()
    asked = len(stage.unreliable.asked)
    stage.end()

    assert stage.told() == ["a", "b"]
    assert asked == 2  # once refused, it is not asked again


def test_a_worker_that_gives_up_does_not_wait_for_the_store(stage: Stage) -> None:
    stage.unreliable.next = ["away"] * 99
    stage.say("a")
    stage.log_flusher.flush()
    stage.state.advance(Phase.ABORTING)
    stage.log_flusher.settle(stage.lines[0])

    assert len(stage.unreliable.asked) == 2


def test_a_request_that_is_refused_is_tried_one_by_one(stage: Stage) -> None:
    stage.unreliable.next = ["refuses"]
    stage.say("a")
    stage.lines[1].add("info", "b")
    stage.log_flusher.flush()

    assert [len(asked) for asked in stage.unreliable.asked] == [2, 1, 1]
    assert (stage.told("w1"), stage.told("w2")) == (["a"], ["b"])


def test_many_lines_go_in_several_requests_and_no_more_than_the_bound_are_kept(stage: Stage) -> None:
    messages = [str(number) for number in range(MAX_LINES + 7)]
    stage.say(*messages[:1700])
    stage.log_flusher.flush()
    assert [len(asked[0].lines) for asked in stage.unreliable.asked] == [500, 500, 500, 200]
    stage.say(*messages[1700:])
    stage.end()

    assert stage.told() == [*messages[:MAX_LINES], "7 more lines or spans of this attempt were not kept"]
