"""The store away for the one read that a woken node makes: it goes on from where it waited, and does nothing again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spanloom.engine import (
    Execution,
    ExecutionFilter,
    ExecutionStatus,
    StoreUnavailable,
    WorkflowBuilder,
    WorkflowEngine,
)
from spanloom.engine.store.models import NodeRun
from spanloom.stores import InMemoryExecutionStore


class FailingOnce(InMemoryExecutionStore):
    """A store whose first answer to a worker about an ended child, and about items, does not arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: list[str] = []

    def get_execution(self, execution_id: str, *, data_limit: int | None = None) -> Execution | None:
        found = super().get_execution(execution_id, data_limit=data_limit)
        if found is not None and found.parent_execution_id is not None:
            self._fail_once("child")
        return found

    def get_node_results(
        self, execution_id: str, node_ids: Sequence[str] | None = None, *, data_limit: int | None = None
    ) -> list[NodeRun]:
        if node_ids is not None:
            self._fail_once("items")
        return super().get_node_results(execution_id, node_ids, data_limit=data_limit)

    def _fail_once(self, what: str) -> None:
        if what not in self.failed:
            self.failed.append(what)
            raise StoreUnavailable("the connection was closed")


def run(store: FailingOnce, redis_url: str, *flows: WorkflowBuilder[Any]) -> Execution:
    """Run the first of the workflows, given 7."""
    with WorkflowEngine(flows, store, redis_url) as engine, engine.start_workers():
        execution = engine.wait(engine.start(flows[0], 7).id, timeout=30)
        assert execution.status is ExecutionStatus.COMPLETED, execution.error
        return execution


def test_a_child_is_not_started_again(redis_url: str) -> None:
    inner, outer = WorkflowBuilder("inner", input=int), WorkflowBuilder("outer", input=int)
    inner.node(id="tenfold")(lambda number: number * 10)
    outer.child("drive", inner)
    store = FailingOnce()

    execution = run(store, redis_url, outer, inner)

    assert store.failed == ["child"]
    assert execution.output == 70
    assert store.get_execution_count(ExecutionFilter(parent_execution_id=execution.id)) == 1


def test_items_do_not_run_again(redis_url: str) -> None:
    ran: list[int] = []
    outer = WorkflowBuilder("outer", input=int)
    numbers = outer.node(id="numbers")(lambda last: list(range(last)))
    outer.node(id="each", inputs=numbers, map=numbers)(lambda number: ran.append(number))
    store = FailingOnce()

    run(store, redis_url, outer)

    assert store.failed == ["items"]
    assert sorted(ran) == list(range(7))
