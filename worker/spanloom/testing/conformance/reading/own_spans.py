"""Conformance: the span of an attempt that its run's result keeps, in short form."""

from __future__ import annotations

from typing import Any

import pytest

from spanloom.engine.store.models import SpanRecord
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import AttemptSpan, Outcome, Replay, SpanLine
from spanloom.engine.store.states import ExecutionStatus
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import chain, single

__all__ = ["OwnSpans"]

_TRACE, _ABOVE = "a" * 32, "b" * 16
_TRACED = {"trace_parent": f"00-{_TRACE}-{_ABOVE}-01"}


def _own(number: int, *, links: str = "[]", attributes: str = '{"spanloom.worker":"w","n":[1]}') -> dict[str, Any]:
    """Return the fields of a record whose span has this number, and starts at it."""
    return {"span": f"{number:016x}", "own_span": AttemptSpan(number, number + 5, attributes, links)}


def _ids(store: ExecutionStore, execution_id: str) -> list[int]:
    return [int(span.span_id, 16) for span in store.get_trace(execution_id)]


class OwnSpans:
    """`RecordRequest.own_span`, in `get_trace`."""

    def test_it_is_read_in_full(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(2), **_TRACED)
        driver.run(execution, "n1", **_own(7, links=f'[["parent","{"c" * 16}"]]'))
        assert store.get_trace(execution) == [
            SpanRecord(
                execution_id=execution,
                trace_id=_TRACE,
                span_id=f"{7:016x}",
                parent_span_id=_ABOVE,
                node_id="n1",
                item=0,
                attempt=1,
                name="run n1",
                kind="consumer",
                status="unset",
                start_ns=7,
                end_ns=12,
                attributes={
                    "spanloom.workflow.id": chain(2).id,
                    "spanloom.workflow.version": 1,
                    "spanloom.execution.id": execution,
                    "spanloom.node.id": "n1",
                    "spanloom.node.attempt": 1,
                    "spanloom.node.outcome": "completed",
                    "spanloom.worker": "w",
                    "n": [1],
                },
                links=[{"trace_id": _TRACE, "span_id": "c" * 16, "kind": "parent"}],
            )
        ]

    def test_spans_of_both_forms_are_one_trace(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(3), **_TRACED)
        below = SpanLine(_TRACE, f"{2:016x}", f"{1:016x}", "below", "internal", "unset", 2, 3)
        driver.run(execution, "n1", spans=[below], **_own(1))
        driver.run(execution, "n2", **_own(4))
        store.add_span(execution, below._replace(span_id=f"{3:016x}", start_ns=3))
        whole = store.get_trace(execution)
        assert _ids(store, execution) == [1, 2, 3, 4]
        assert list(store.iter_trace(execution, page=1)) == whole
        assert store.get_trace(execution, after=whole[0], limit=2) == whole[1:3]

    @pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.SKIPPED])
    def test_its_outcome_is_that_of_the_run(self, store: ExecutionStore, driver: StoreDriver, outcome: Outcome) -> None:
        execution = driver.start(single(), **_TRACED)
        driver.run(execution, "only", outcome, **_own(1))
        (span,) = store.get_trace(execution)
        assert span.attributes["spanloom.node.outcome"] == outcome.value
        assert span.status == ("error" if outcome is Outcome.FAILED else "unset")

    def test_a_retry_keeps_those_of_the_attempts_before(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single(), **_TRACED)
        for number in (1, 2):
            driver.run(execution, "only", Outcome.FAILED, **_own(number))
            before = store.get_trace(execution)
            driver.retry(execution)
            assert store.get_trace(execution) == before
        driver.run(execution, "only", **_own(3))
        assert _ids(store, execution) == [1, 2, 3]
        assert [span.status for span in store.get_trace(execution)] == ["error", "error", "unset"]

    def test_a_retry_keeps_those_of_items(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single(), **_TRACED)
        driver.fan_out(execution, "only", ["x", "y"])
        driver.run(execution, "only", item=1, **_own(1))
        driver.run(execution, "only", Outcome.FAILED, item=2, **_own(2))
        driver.run(execution, "only", Outcome.FAILED, span="node")
        driver.retry(execution)
        assert _ids(store, execution) == [1, 2]
        assert [span.attributes["spanloom.node.item"] for span in store.get_trace(execution)] == [1, 2]

    def test_a_node_that_is_mapped_anew_keeps_those_of_its_items(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(single(), **_TRACED)
        driver.fan_out(execution, "only", ["x"])
        driver.run(execution, "only", item=1, **_own(1))
        driver.run(execution, "only", Outcome.RETRY)
        driver.sweep_all()
        driver.fan_out(execution, "only", ["y"])
        driver.run(execution, "only", item=1, **_own(2))
        assert _ids(store, execution) == [1, 2]

    def test_a_cancelled_run_keeps_that_of_its_late_end_once(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single(), **_TRACED)
        record = driver.outcome(execution, driver.claim(execution, "only"), Outcome.FAILED, **_own(1))
        driver.cancel(execution)
        assert store.get_trace(execution) == []
        driver.send(record)
        (span,) = store.get_trace(execution)
        assert (span.status, span.attributes["spanloom.node.outcome"]) == ("error", "failed")
        driver.send(record._replace(**_own(2)))
        assert store.get_trace(execution) == [span]

    def test_a_stale_claim_keeps_none(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single(), **_TRACED)
        record = driver.outcome(execution, driver.claim(execution, "only"), **_own(1))
        assert driver.send(record).ended is ExecutionStatus.COMPLETED
        driver.send(record._replace(**_own(2)))
        driver.send(record._replace(fence=record.fence + 1, **_own(3)))
        assert _ids(store, execution) == [1]

    def test_a_replay_has_none_of_its_source(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(2), **_TRACED)
        driver.run(execution, "n1", **_own(1))
        replay = driver.start("chain", replay=Replay(execution, carried=["n1"]), **_TRACED)
        assert store.get_trace(replay) == []
