"""Conformance: log lines of a node that are kept while it runs."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable
from datetime import timedelta

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import LogLine, NodeClaim, NodeLines, Outcome
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import chain, diamond, single

__all__ = ["LinesOfRunningNodes"]


def _lines_of(execution_id: str, node: NodeClaim, clock: ManualClock, *messages: str, after: int = 0) -> NodeLines:
    lines = [
        LogLine("info", message, clock() + timedelta(microseconds=number), attempt=node.attempt)
        for number, message in enumerate(messages)
    ]
    return NodeLines(execution_id, node.node_id, node.item, node.fence, lines, after)


def _told(store: ExecutionStore, execution_id: str, node_id: str | None = None) -> list[str]:
    return [line.message for line in store.get_logs(execution_id, node_id=node_id)]


class LinesOfRunningNodes:
    """`add_logs`: under the claim's fence, in order, once."""

    def test_lines_show_while_their_node_runs_and_its_record_adds_the_rest(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        node = driver.claim(execution, "only")
        (first,) = store.add_logs([_lines_of(execution, node, clock, "a", "b")])
        assert first is not None
        assert _told(store, execution) == ["a", "b"]
        (second,) = store.add_logs([_lines_of(execution, node, clock, "c", after=first)])
        driver.record(execution, node, logs=[LogLine("info", "d", clock())])
        assert _told(store, execution, "only") == ["a", "b", "c", "d"]
        assert store.get_logs(execution, after=first)[0].id == second

    def test_a_line_kept_early_has_all_it_has(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        node = driver.claim(execution, "only")
        line = LogLine("warning", "Größe ✓", clock(), '{"n": [1, null]}', 1, "a" * 32, "b" * 16)
        (number,) = store.add_logs([NodeLines(execution, "only", 0, node.fence, [line])])
        (found,) = store.get_logs(execution)
        assert (found.id, found.node_id, found.item, found.attempt) == (number, "only", 0, 1)
        assert (found.level, found.message, found.at, found.fields) == ("warning", "Größe ✓", clock(), {"n": [1, None]})
        assert (found.trace_id, found.span_id) == ("a" * 32, "b" * 16)

    def test_lines_of_several_nodes_are_kept_at_once_and_answered_one_by_one(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution, other = driver.start(diamond()), driver.start(single())
        driver.run(execution, "top")
        left, right, only = (
            driver.claim(execution, "left"),
            driver.claim(execution, "right"),
            driver.claim(other, "only"),
        )
        stale = right._replace(fence=right.fence + 1)
        answers = store.add_logs(
            [
                _lines_of(execution, left, clock, *(f"l{number}" for number in range(1200))),
                _lines_of(execution, stale, clock, "lost"),
                _lines_of(other, only, clock, "o"),
            ]
        )
        assert [answer is None for answer in answers] == [False, True, False]
        kept = store.get_logs(execution)
        kept += store.get_logs(execution, after=kept[-1].id)
        assert [line.message for line in kept] == [f"l{number}" for number in range(1200)]
        assert answers[0] == kept[-1].id
        assert _told(store, other) == ["o"]

    @pytest.mark.parametrize(
        "change",
        [
            lambda request: dataclasses.replace(request, fence=request.fence + 1),
            lambda request: dataclasses.replace(request, fence=request.fence - 1),
            lambda request: dataclasses.replace(request, node_id="n2"),
            lambda request: dataclasses.replace(request, item=1),
            lambda request: dataclasses.replace(request, execution_id=str(uuid.uuid4())),
            lambda request: dataclasses.replace(request, execution_id="no such thing"),
        ],
        ids=["later fence", "earlier fence", "other node", "item", "execution", "no id"],
    )
    def test_lines_that_do_not_match_the_claim_are_not_kept(
        self,
        store: ExecutionStore,
        driver: StoreDriver,
        clock: ManualClock,
        change: Callable[[NodeLines], NodeLines],
    ) -> None:
        execution = driver.start(chain(2))
        node = driver.claim(execution, "n1")
        assert store.add_logs([change(_lines_of(execution, node, clock, "lost"))]) == [None]
        assert _told(store, execution) == []

    def test_lines_of_a_claim_that_has_ended_are_not_kept(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        given_back = driver.claim(execution, "only")
        driver.record(execution, given_back, Outcome.RELEASED)
        assert store.add_logs([_lines_of(execution, given_back, clock, "late")]) == [None]
        ended = driver.claim(execution, "only")
        driver.record(execution, ended)
        assert store.add_logs([_lines_of(execution, ended, clock, "later")]) == [None]
        assert _told(store, execution) == []

    def test_lines_sent_again_are_kept_once(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        node = driver.claim(execution, "only")
        (before,) = store.add_logs([_lines_of(execution, node, clock, "same", "b")])
        assert before is not None
        clock.advance(1)
        request = _lines_of(execution, node, clock, "same", "d", after=before)
        again = dataclasses.replace(request, again=True)
        (never_came,) = store.add_logs([again])  # the first time it did not reach the store
        assert never_came is not None
        assert never_came > before
        assert store.add_logs([again]) == [never_came]
        assert _told(store, execution) == ["same", "b", "same", "d"]

    def test_lines_sent_again_are_known_again_when_the_claim_is_gone(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        node = driver.claim(execution, "only")
        request = _lines_of(execution, node, clock, "a", "b")
        (kept,) = store.add_logs([request])
        driver.cancel(execution)
        assert store.add_logs([dataclasses.replace(request, again=True)]) == [kept]
        clock.advance(1)
        late = _lines_of(execution, node, clock, "c", after=kept or 0)
        assert store.add_logs([dataclasses.replace(late, again=True)]) == [None]
        driver.record(execution, node, logs=late.lines)
        assert _told(store, execution) == ["a", "b", "c"]
