"""Jobs that can't be claimed: none of them keeps others from running, and none is forgotten."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer

from spanloom.engine import ExecutionStatus, Node, NodeRegistry, Workflow, WorkflowEngine
from spanloom.engine.errors import ConfigurationError, PayloadRejected, SpanloomError, StoreUnavailable, Unavailability
from spanloom.engine.store.requests import ClaimAnswer, NodeKey
from spanloom.stores import InMemoryExecutionStore

FULL = StoreUnavailable("out of memory", reason=Unavailability.RESOURCES)


class Refusing(InMemoryExecutionStore):
    """A store that does not serve the claims of some executions, as all stores answer then."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: dict[str, SpanloomError] = {}
        self.lost_answers = 0
        self.met = threading.Event()

    def claim(self, keys: Sequence[NodeKey], **options: Any) -> list[ClaimAnswer]:
        served = [key for key in keys if key.execution_id not in self.refused]
        answers = iter(super().claim(served, **options)) if served else iter(())
        if self.lost_answers:
            self.lost_answers -= 1
            raise MemoryError
        found = [self.refused[key.execution_id] if key not in served else next(answers) for key in keys]
        if found and not served:
            self.met.set()
            raise found[0]
        return found


@pytest.fixture
def store() -> Refusing:
    return Refusing()


@pytest.fixture
def engine(store: Refusing) -> Iterator[WorkflowEngine]:
    registry = NodeRegistry()
    registry.node("echo")(lambda data: data)
    with WorkflowEngine(registry, store, FakeRedis(server=FakeServer())) as engine:
        engine.register_workflow(Workflow(id="w", nodes=[Node(id="a", type="echo")]))
        yield engine


def test_a_claim_that_is_never_served_fails_its_node_with_the_stores_words(
    engine: WorkflowEngine, store: Refusing
) -> None:
    bad, good = engine.enqueue_workflows("w", [1, 2])
    store.refused[bad] = PayloadRejected("the results that reach it are too large")
    with engine.start_workers(1, concurrency=2):
        assert engine.wait(good, timeout=30).output == 2
        failed = engine.wait(bad, timeout=30)
        alone = engine.enqueue_workflow("w", 3)
        assert engine.wait(alone, timeout=30).output == 3
    assert failed.status is ExecutionStatus.FAILED
    assert failed.error is not None
    assert (failed.error["node_id"], failed.error["message"]) == ("a", "the results that reach it are too large")


def test_a_failure_edge_of_a_node_that_is_never_claimed_is_taken(engine: WorkflowEngine, store: Refusing) -> None:
    mended = Node.model_validate({"id": "b", "type": "echo", "inputs": [{"node": "a", "on": "failure"}]})
    engine.register_workflow(Workflow(id="v", nodes=[Node(id="a", type="echo"), mended]))
    execution_id = engine.enqueue_workflow("v", 1)

    class Once(dict[str, SpanloomError]):
        def __contains__(self, key: object) -> bool:
            return key == execution_id and store.get_node_results(execution_id, ["a"])[0].status == "queued"

    store.refused = Once({execution_id: PayloadRejected("too large")})
    with engine.start_workers(1):
        ended = engine.wait(execution_id, timeout=30)
    assert ended.status is ExecutionStatus.COMPLETED
    assert ended.output["error"]["message"] == "too large"


@pytest.mark.parametrize("error", [FULL, ConfigurationError("prepared statements fail")])
def test_a_claim_that_is_not_served_now_holds_up_no_other_job(
    engine: WorkflowEngine, store: Refusing, error: SpanloomError
) -> None:
    bad = engine.enqueue_workflow("w", "bad")
    store.refused[bad] = error
    with engine.start_workers(1, concurrency=2, lost_job_after_seconds=0.2):
        assert store.met.wait(30)
        for number in range(5):
            assert engine.run("w", number, timeout=30) == number
        assert engine.store.get_execution(bad).status is ExecutionStatus.RUNNING  # type: ignore[union-attr]
        store.refused.clear()
        assert engine.wait(bad, timeout=30).output == "bad"


def test_claims_of_which_the_answer_could_not_be_read_run_all_the_same(engine: WorkflowEngine, store: Refusing) -> None:
    store.lost_answers = 1
    ids = engine.enqueue_workflows("w", range(3))
    with engine.start_workers(1, concurrency=3):
        assert [engine.wait(one, timeout=30).output for one in ids] == [0, 1, 2]
    assert [[event.kind for event in store.get_events(one)].count("node.started") for one in ids] == [1, 1, 1]


def test_a_claim_that_waits_for_a_lock_for_ever_costs_no_other_its_run(engine: WorkflowEngine, store: Refusing) -> None:
    late = StoreUnavailable("no answer in time", reason=Unavailability.TIME_LIMIT)
    bad, *others = engine.enqueue_workflows("w", range(4))
    genuine = store.claim

    def claim(keys: Sequence[NodeKey], **options: Any) -> list[ClaimAnswer]:
        if store.refused and any(key.execution_id == bad for key in keys):
            raise late
        return genuine(keys, **options)

    store.refused[bad] = late
    store.claim = claim  # type: ignore[method-assign]
    with engine.start_workers(1, concurrency=4, lost_job_after_seconds=0.2):
        assert [engine.wait(one, timeout=30).output for one in others] == [1, 2, 3]
        store.refused.clear()
        assert engine.wait(bad, timeout=30).output == 0
