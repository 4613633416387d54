"""Conformance: logs, spans and events."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone

import pytest

from spanloom.engine.errors import UnknownExecution
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import LogLine, Outcome, SpanLine
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import chain, diamond, fan, single

__all__ = ["Events", "Logs", "Spans"]

_UNKNOWN = [str(uuid.UUID(int=7)), "no such thing"]


def _span(span_id: int, *, start_ns: int = 10, **fields: object) -> SpanLine:
    values: dict[str, object] = {
        "trace_id": "a" * 32,
        "span_id": f"{span_id:016x}",
        "parent_span_id": None,
        "name": "work",
        "kind": "internal",
        "status": "unset",
        "start_ns": start_ns,
        "end_ns": None,
    }
    return SpanLine(**(values | fields))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Logs:
    """`add_log` and `get_logs`."""

    def test_lines_come_back_in_the_order_of_storing(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        ids = [
            store.add_log(execution, LogLine("info", f"line {number}", clock() - timedelta(seconds=number)))
            for number in range(5)
        ]
        assert ids == sorted(set(ids))
        lines = store.get_logs(execution)
        assert [line.id for line in lines] == ids
        assert [line.message for line in lines] == [f"line {number}" for number in range(5)]

    def test_a_line_keeps_all_it_has(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        at = datetime(2029, 5, 6, 7, 8, 9, 123456, tzinfo=timezone(timedelta(hours=2)))
        line = LogLine("warning", "Größe ✓\nzwei", at, '{"n": [1, null], "ü": ""}', 3, "a" * 32, "b" * 16)
        number = store.add_log(execution, line, node_id="only", item=2)
        (found,) = store.get_logs(execution)
        assert (found.id, found.execution_id, found.node_id, found.item) == (number, execution, "only", 2)
        assert (found.level, found.message, found.attempt) == ("warning", "Größe ✓\nzwei", 3)
        assert found.fields == {"n": [1, None], "ü": ""}
        assert (found.at, found.at.tzinfo) == (at, UTC)
        assert (found.trace_id, found.span_id) == ("a" * 32, "b" * 16)

    def test_lines_are_read_on_from_the_last_seen(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        at = datetime(2030, 1, 1, tzinfo=UTC)
        for number in range(10):
            store.add_log(execution, LogLine("info", str(number), at))
        seen: list[str] = []
        after = 0
        while lines := store.get_logs(execution, after=after, limit=3):
            assert len(lines) <= 3
            seen.extend(line.message for line in lines)
            after = lines[-1].id
        assert seen == [str(number) for number in range(10)]

    def test_lines_of_one_node_or_one_execution_are_found(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        first, second = driver.start(diamond()), driver.start(diamond())
        store.add_log(first, LogLine("info", "whole", clock()))
        store.add_log(first, LogLine("info", "left", clock()), node_id="left")
        store.add_log(second, LogLine("info", "other", clock()), node_id="left")
        assert [line.message for line in store.get_logs(first)] == ["whole", "left"]
        assert [line.message for line in store.get_logs(first, node_id="left")] == ["left"]
        assert [line.message for line in store.get_logs(second)] == ["other"]

    @pytest.mark.parametrize("unknown", _UNKNOWN)
    def test_an_unknown_execution_takes_no_line(self, store: ExecutionStore, clock: ManualClock, unknown: str) -> None:
        with pytest.raises(UnknownExecution):
            store.add_log(unknown, LogLine("info", "lost", clock()))


class Spans:
    """`add_span`, `update_span` and `get_trace`."""

    def test_a_span_keeps_all_it_has(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        link = f'[{{"trace_id": "{"c" * 32}", "span_id": "{"d" * 16}"}}]'
        start_ns = 1_893_456_000_123_456_789
        store.add_span(
            execution,
            _span(
                1,
                start_ns=start_ns,
                end_ns=start_ns + 1,
                parent_span_id="e" * 16,
                name="wörk",
                kind="consumer",
                status="ok",
                node_id="only",
                item=2,
                attempt=3,
                attributes='{"a": [1, 2.5], "b": {"c": null}}',
                links=link,
            ),
        )
        (found,) = store.get_trace(execution)
        assert (found.execution_id, found.trace_id, found.span_id) == (execution, "a" * 32, f"{1:016x}")
        assert (found.parent_span_id, found.name, found.kind, found.status) == ("e" * 16, "wörk", "consumer", "ok")
        assert (found.node_id, found.item, found.attempt) == ("only", 2, 3)
        assert (found.start_ns, found.end_ns) == (start_ns, start_ns + 1)
        assert found.attributes == {"a": [1, 2.5], "b": {"c": None}}
        assert found.links == [{"trace_id": "c" * 32, "span_id": "d" * 16}]

    def test_a_trace_is_ordered_by_start_then_id(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        for number, start_ns in ((3, 20), (1, 30), (4, 10), (2, 20)):
            store.add_span(execution, _span(number, start_ns=start_ns))
        assert [int(span.span_id, 16) for span in store.get_trace(execution)] == [4, 2, 3, 1]

    def test_the_same_span_again_replaces_it(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        store.add_span(execution, _span(1, name="before"))
        store.add_span(execution, _span(1, name="after", end_ns=11, status="error"))
        (found,) = store.get_trace(execution)
        assert (found.name, found.end_ns, found.status) == ("after", 11, "error")

    def test_a_stored_span_is_ended(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(single())
        store.add_span(execution, _span(1))
        assert store.update_span(execution, f"{1:016x}", end_ns=99, status="ok") is True
        (found,) = store.get_trace(execution)
        assert (found.end_ns, found.status, found.name) == (99, "ok", "work")
        assert store.update_span(execution, f"{2:016x}", end_ns=99, status="ok") is False

    def test_the_same_span_id_of_two_executions_is_two_spans(self, store: ExecutionStore, driver: StoreDriver) -> None:
        first, second = driver.start(single()), driver.start(single())
        store.add_span(first, _span(1, name="first"))
        store.add_span(second, _span(1, name="second"))
        assert [span.name for span in store.get_trace(first)] == ["first"]
        assert [span.name for span in store.get_trace(second)] == ["second"]

    @pytest.mark.parametrize("unknown", _UNKNOWN)
    def test_an_unknown_execution_takes_no_span(self, store: ExecutionStore, unknown: str) -> None:
        with pytest.raises(UnknownExecution):
            store.add_span(unknown, _span(1))
        assert store.update_span(unknown, f"{1:016x}", end_ns=1, status="ok") is False


class Events:
    """`get_events`: the history of an execution, written inside its transitions."""

    def test_a_chain_tells_its_life_in_order(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(chain(2))
        driver.drain(work_first=False)
        events = store.get_events(execution)
        assert [(event.kind, event.node_id) for event in events] == [
            ("execution.created", None),
            ("execution.started", None),
            ("node.queued", "n1"),
            ("node.started", "n1"),
            ("node.completed", "n1"),
            ("node.queued", "n2"),
            ("node.started", "n2"),
            ("node.completed", "n2"),
            ("execution.completed", None),
        ]
        assert {event.at for event in events} == {clock()}
        assert {event.execution_id for event in events} == {execution}
        assert [event.attempt for event in events if event.node_id == "n1" and event.kind != "node.queued"] == [1, 1]
        assert {event.worker_id for event in events if event.kind == "node.completed"} == {driver.worker_id}

    def test_work_first_tells_of_the_start_without_a_queue(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(chain(2))
        driver.drain(work_first=True)
        kinds = [event.kind for event in store.get_events(execution) if event.node_id == "n2"]
        assert kinds == ["node.started", "node.completed"]

    def test_a_run_tells_of_each_of_its_attempts(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        driver.run(execution, "only", Outcome.RELEASED)
        driver.run(execution, "only", Outcome.RETRY, delay_seconds=1)
        clock.advance(2)
        driver.jobs.extend(store.sweep(heads={}, epoch=0, now=clock()).jobs)
        driver.run(execution, "only", Outcome.SKIPPED)
        kinds = [event.kind for event in store.get_events(execution) if event.node_id]
        assert [kind for kind in kinds if kind != "node.queued"] == [
            "node.started",
            "node.released",
            "node.started",
            "node.retrying",
            "node.started",
            "node.skipped",
        ]
        started = [event.attempt for event in store.get_events(execution) if event.kind == "node.started"]
        assert started == [1, 1, 2]

    @pytest.mark.parametrize("limit", [1, 2, 1000])
    def test_events_are_read_on_from_a_cursor(self, store: ExecutionStore, driver: StoreDriver, limit: int) -> None:
        execution = driver.start(fan(3))
        read: list[str] = []
        cursor: str | None = None

        def read_on() -> None:
            nonlocal cursor
            while events := store.get_events(execution, after=cursor, limit=limit):
                assert len(events) <= limit
                read.extend(event.cursor for event in events)
                cursor = events[-1].cursor

        read_on()
        assert len(read) == 3
        for name in ("split", "w1", "w2", "w3", "join"):
            driver.run(execution, name)
            read_on()
        whole = store.get_events(execution)
        assert read == [event.cursor for event in whole]
        assert len(set(read)) == len(read)
        assert whole[-1].kind == "execution.completed"

    def test_executions_have_histories_of_their_own(self, store: ExecutionStore, driver: StoreDriver) -> None:
        first, second = driver.start(single()), driver.start(single())
        driver.run(second, "only")
        assert len(store.get_events(first)) == 3
        assert store.get_events(first, after=store.get_events(first)[-1].cursor) == []
