"""Conformance: reading executions and node runs back, filters, counts, pages."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import pytest

from spanloom.engine.store.models import Execution, ExecutionFilter, Page
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import NodeKey, Outcome, StartResult
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.workflows import chain, graph, single

__all__ = ["Pages", "Reads"]

T = TypeVar("T")


def _all_pages(fetch: Callable[[str | None], Page[T]], between: Callable[[], object] = lambda: None) -> list[T]:
    found: list[T] = []
    cursor: str | None = None
    while True:
        page = fetch(cursor)
        found.extend(page.items)
        if page.next_cursor is None:
            return found
        assert page.items, "a page in the middle is not empty"
        cursor = page.next_cursor
        between()


class Reads:
    """`ExecutionReads` of single executions, and by filter."""

    @pytest.mark.parametrize("unknown", [str(uuid.UUID(int=7)), "no such thing", ""])
    def test_what_is_unknown_is_absent_and_no_error(self, store: ExecutionStore, unknown: str) -> None:
        assert store.get_execution(unknown) is None
        assert store.get_status(unknown) is None
        assert store.get_node_results(unknown) == []
        assert store.get_child_executions(unknown) == []
        assert store.get_parent_execution(unknown) is None
        assert store.get_events(unknown) == []
        assert store.get_logs(unknown) == []
        assert store.get_trace(unknown) == []
        assert store.list_executions(ExecutionFilter(parent_execution_id=unknown)).items == []
        assert store.get_execution_count(ExecutionFilter(workflow_id=unknown)) == 0

    def test_node_runs_are_listed_by_id_open_and_ended_alike(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(graph("g", {"b": [], "a": [], "c": [], "B": []}))
        driver.run(execution, "c")
        driver.claim(execution, "a")
        runs = store.get_node_results(execution)
        assert [run.node_id for run in runs] == ["B", "a", "b", "c"]
        assert [run.status for run in runs] == [
            NodeStatus.QUEUED,
            NodeStatus.RUNNING,
            NodeStatus.QUEUED,
            NodeStatus.COMPLETED,
        ]
        assert {(run.execution_id, run.node_type, run.item) for run in runs} == {(execution, "work", 0)}

    def test_named_node_runs_alone_are_returned(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(graph("g", {"a": [], "b": [], "c": []}))
        assert [run.node_id for run in store.get_node_results(execution, ["c", "a", "other"])] == ["a", "c"]
        assert store.get_node_results(execution, []) == []

    def test_executions_are_listed_newest_first_without_outputs(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        started: list[str] = []
        for number in range(5):
            clock.advance(1)
            started.append(driver.start(single(), number))
        driver.drain()
        listed = store.list_executions().items
        assert [row.id for row in listed] == started[::-1]
        assert [row.input for row in listed] == [4, 3, 2, 1, 0]
        assert {row.output for row in listed} == {None}

    def test_every_filter_narrows_lists_and_counts_alike(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        # given executions that differ in one respect each
        begin = clock()
        plain = driver.start(single())
        other = driver.start(single("other"))
        failed = driver.start(single())
        driver.run(failed, "only", Outcome.FAILED)
        tagged = driver.start(single(), metadata={"order": "7", "shop": "x"})
        half_tagged = driver.start(single(), metadata={"order": "7", "shop": "y"})
        child = driver.start(single(), parent=NodeKey(plain, "only"), parent_fence=1, depth=1)
        clock.advance(10)
        late = driver.start(single())
        everything = {plain, other, failed, tagged, half_tagged, child, late}
        cases: list[tuple[dict[str, Any], set[str]]] = [
            ({}, everything),
            ({"workflow_id": "other"}, {other}),
            ({"status": ExecutionStatus.FAILED}, {failed}),
            ({"status": ExecutionStatus.RUNNING}, everything - {failed}),
            ({"status": ExecutionStatus.CANCELLED}, set()),
            ({"parent_execution_id": plain}, {child}),
            ({"created_after": clock()}, {late}),
            ({"created_after": clock() + timedelta(microseconds=1)}, set()),
            ({"created_before": clock()}, everything - {late}),
            ({"created_before": begin}, set()),
            ({"metadata": {"order": "7"}}, {tagged, half_tagged}),
            ({"metadata": {"order": "7", "shop": "x"}}, {tagged}),
            ({"metadata": {"order": "8"}}, set()),
            ({"workflow_id": "single", "status": ExecutionStatus.RUNNING, "metadata": {"shop": "y"}}, {half_tagged}),
            ({"workflow_id": "other", "metadata": {"shop": "y"}}, set()),
        ]
        for fields, wanted in cases:
            wish = ExecutionFilter(**fields)
            assert {row.id for row in store.list_executions(wish).items} == wanted, fields
            assert store.get_execution_count(wish) == len(wanted), fields
        assert store.get_execution_count() == len(everything)

    def test_a_status_filter_follows_the_status(self, store: ExecutionStore, driver: StoreDriver) -> None:
        def count(status: ExecutionStatus) -> int:
            return store.get_execution_count(ExecutionFilter(status=status))

        driver.start(single(), delay_seconds=60)
        execution = driver.start(single())
        driver.start(single())
        store.cancel_execution(execution)
        driver.drain()
        counts = [count(status) for status in ExecutionStatus]
        assert dict(zip(ExecutionStatus, counts, strict=True)) == {
            ExecutionStatus.PENDING: 1,
            ExecutionStatus.RUNNING: 0,
            ExecutionStatus.PAUSED: 0,
            ExecutionStatus.COMPLETED: 1,
            ExecutionStatus.FAILED: 0,
            ExecutionStatus.CANCELLED: 1,
        }

    def test_parents_and_children_agree(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        parent = driver.start(single())
        children: list[str] = []
        for _ in range(3):
            clock.advance(1)
            children.append(driver.start("single", parent=NodeKey(parent, "only"), parent_fence=1, depth=1))
        grandchild = driver.start("single", parent=NodeKey(children[0], "only"), parent_fence=1, depth=2)
        assert [row.id for row in store.get_child_executions(parent)] == children
        for child in children:
            found = store.get_parent_execution(child)
            assert found is not None
            assert found.id == parent
        above = store.get_parent_execution(grandchild)
        assert above is not None
        assert above.id == children[0]
        assert store.get_parent_execution(parent) is None
        assert store.get_child_executions(grandchild) == []

    def test_stats_count_what_is_there(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        driver.start(single())
        driver.drain()
        execution = driver.start(graph("three", {"a": [], "b": [], "c": []}))
        driver.claim(execution, "a")
        driver.run(execution, "b", Outcome.RETRY, delay_seconds=100)
        clock.advance(5)
        stats = store.stats(now=clock())
        assert (stats.workflows, stats.workers) == (2, 1)
        assert {status: count for status, count in stats.executions.items() if count} == {
            ExecutionStatus.COMPLETED: 1,
            ExecutionStatus.RUNNING: 1,
        }
        runs = {status: count for status, count in stats.open_node_runs.items() if count}
        assert (runs[NodeStatus.RUNNING], runs[NodeStatus.QUEUED], runs[NodeStatus.WAITING]) == (1, 1, 1)
        assert stats.oldest_queued_seconds == 5.0

    def test_an_empty_store_counts_nothing(self, store: ExecutionStore, clock: ManualClock) -> None:
        stats = store.stats(now=clock())
        assert (stats.workflows, stats.workers, stats.oldest_queued_seconds) == (0, 0, None)
        assert sum(stats.executions.values()) == sum(stats.open_node_runs.values()) == 0


class Pages:
    """Lists by cursor: every row that was there throughout, once, in order."""

    @pytest.mark.parametrize("limit", [1, 3, 7, 12, 100])
    def test_pages_join_up_to_the_whole_list(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, limit: int
    ) -> None:
        for number in range(12):
            clock.advance(number % 3)  # some at the same time
            driver.start(single(), number)
        whole = [row.id for row in store.list_executions(limit=1000).items]
        paged = _all_pages(lambda cursor: store.list_executions(limit=limit, cursor=cursor))
        assert [row.id for row in paged] == whole
        assert len(set(whole)) == 12

    def test_executions_of_one_instant_are_in_the_order_of_their_ids(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        started = [driver.start(single()) for _ in range(20)]
        assert [row.id for row in store.list_executions().items] == sorted(started, reverse=True)

    @pytest.mark.parametrize("limit", [1, 4, 7])
    def test_what_is_started_between_pages_moves_nothing(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock, limit: int
    ) -> None:
        # given executions of one instant
        there = [driver.start(single()) for _ in range(15)]
        gaps = iter(range(8))

        def start_some() -> None:
            if next(gaps, None) is not None:
                same = store.create_executions([request("single") for _ in range(3)], now=clock())
                later = store.create_execution(request("single"), now=clock() + timedelta(seconds=1))
                assert all(isinstance(answer, StartResult) for answer in [*same, later])

        # when others of the same instant, and later ones, come in between the first pages of the list
        paged = _all_pages(lambda cursor: store.list_executions(limit=limit, cursor=cursor), between=start_some)
        # then each that was there is listed once, in order, and none is listed twice
        seen = [row.id for row in paged]
        assert len(seen) == len(set(seen))
        assert [found_id for found_id in seen if found_id in there] == sorted(there, reverse=True)

    def test_a_filter_holds_on_every_page(self, store: ExecutionStore, driver: StoreDriver) -> None:
        wanted = [driver.start(single(), metadata={"k": "yes"}) for _ in range(7)]
        for _ in range(7):
            driver.start(single(), metadata={"k": "no"})
        wish = ExecutionFilter(metadata={"k": "yes"})
        found: list[Execution] = _all_pages(lambda cursor: store.list_executions(wish, limit=2, cursor=cursor))
        assert [row.id for row in found] == sorted(wanted, reverse=True)

    @pytest.mark.parametrize("limit", [1, 2, 5])
    def test_versions_are_paged_newest_first(self, store: ExecutionStore, limit: int) -> None:
        for length in range(1, 6):
            store.save_workflow(chain(length))
        found = _all_pages(lambda cursor: store.list_workflow_versions("chain", limit=limit, cursor=cursor))
        assert [row.version for row in found] == [5, 4, 3, 2, 1]

    def test_versions_saved_between_pages_move_nothing(self, store: ExecutionStore) -> None:
        for length in range(1, 5):
            store.save_workflow(chain(length))
        lengths = iter(range(10, 20))
        found = _all_pages(
            lambda cursor: store.list_workflow_versions("chain", limit=1, cursor=cursor),
            between=lambda: store.save_workflow(chain(next(lengths))),
        )
        assert [row.version for row in found] == [4, 3, 2, 1]

    @pytest.mark.parametrize("limit", [1, 2, 5])
    def test_workflows_are_paged_by_id(self, store: ExecutionStore, limit: int) -> None:
        for name in ("d", "a", "e", "c", "b"):
            store.save_workflow(single(name))
        store.deactivate_workflow("c")
        found = _all_pages(lambda cursor: store.list_workflows(limit=limit, cursor=cursor))
        assert [row.id for row in found] == ["a", "b", "c", "d", "e"]
        active = _all_pages(lambda cursor: store.list_workflows(active=True, limit=limit, cursor=cursor))
        assert [row.id for row in active] == ["a", "b", "d", "e"]
