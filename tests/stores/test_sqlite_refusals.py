"""What no SQLite column holds is refused in words, as Postgres refuses it, and nothing is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from spanloom.engine import ExecutionFilter, Node, NodeRegistry, Workflow, WorkflowEngine
from spanloom.engine.errors import PayloadRejected, SpanloomError
from spanloom.testing.driver import request

HALF = "\ud800"


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[WorkflowEngine]:
    registry = NodeRegistry()
    registry.node("echo")(lambda data: data)
    engine = WorkflowEngine(registry, sqlite_url, "redis://127.0.0.1:1")
    engine.register_workflow(Workflow(id="w", nodes=[Node(id="a", type="echo")]))
    yield engine
    engine.close()


@pytest.mark.parametrize(
    "use",
    [
        lambda engine: engine.enqueue_workflow("w", version=2**70),
        lambda engine: engine.enqueue_workflow(HALF),
        lambda engine: engine.enqueue_workflow("w", idempotency_key=HALF),
        lambda engine: engine.enqueue_workflow("w", metadata={"file": HALF}),
        lambda engine: engine.cancel_execution(HALF),
        lambda engine: engine.store.list_executions(ExecutionFilter(workflow_id=HALF)),
        lambda engine: engine.register_workflow(Workflow(id="x", nodes=[Node(id="a", type="echo")]), HALF),
    ],
)
def test_what_no_column_holds_is_refused(engine: WorkflowEngine, use: Callable[[WorkflowEngine], object]) -> None:
    with pytest.raises(SpanloomError):
        use(engine)

    assert engine.store.get_execution_count(ExecutionFilter()) == 0
    assert [one.id for one in engine.store.list_workflows().items] == ["w"]


@pytest.mark.parametrize("field", ["delay_seconds", "deadline_seconds", "key_ttl_seconds"])
def test_a_time_that_could_not_be_read_as_a_date_is_refused(engine: WorkflowEngine, field: str) -> None:
    wanted = request("w", idempotency_key="key", input_hash="hash", **{field: 1e12})  # 33,000 years
    with pytest.raises(PayloadRejected):
        engine.store.create_execution(wanted)
    assert engine.store.get_execution_count() == 0
