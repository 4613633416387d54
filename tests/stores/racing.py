"""What races of workers and operators on Postgres are made of."""

from __future__ import annotations

from collections.abc import Callable

from spanloom.engine.errors import InvalidTransition
from spanloom.engine.store.requests import Claim, NodeClaim, NodeKey, RecordRequest
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.stores.postgres.store import PostgresExecutionStore
from spanloom.testing.driver import StoreDriver


def claimed(store: PostgresExecutionStore, driver: StoreDriver, keys: list[NodeKey]) -> list[tuple[str, NodeClaim]]:
    """Claim them all in one call; return each with its execution."""
    answers = store.claim(keys, worker_id=driver.worker_id)
    assert all(isinstance(answer, Claim) for answer in answers), answers
    return [(answer.header.execution_id, answer.node) for answer in answers if isinstance(answer, Claim)]


def completed(driver: StoreDriver, claims: list[tuple[str, NodeClaim]]) -> list[RecordRequest]:
    """Return the records by which these claims complete."""
    return [driver.outcome(execution, node) for execution, node in claims]


def by_node(
    store: PostgresExecutionStore, driver: StoreDriver, execution: str, names: list[str]
) -> list[tuple[str, NodeClaim]]:
    """Claim nodes of one execution in one call; return each with its name."""
    claims = claimed(store, driver, [NodeKey(execution, name) for name in names])
    return [(node.node_id, node) for _, node in claims]


def record_each(store: PostgresExecutionStore, records: list[RecordRequest]) -> None:
    """Record them five at a time."""
    for at in range(0, len(records), 5):
        assert all(answer.recorded for answer in store.record(records[at : at + 5]))


def run_all(driver: StoreDriver, store: PostgresExecutionStore, execution: str) -> list[ExecutionStatus]:
    """Sweep, and run whatever is queued, until nothing is; return the ends that records answered."""
    ends: list[ExecutionStatus] = []
    while True:
        driver.sweep_all()
        queued = [run.node_id for run in store.get_node_results(execution) if run.status is NodeStatus.QUEUED]
        if not queued:
            return ends
        for node_id in queued:
            answer = driver.run(execution, node_id)
            ends += [answer.ended] if answer.ended is not None else []


def quietly(act: Callable[[str], object], execution: str) -> object:
    """Do to an execution what another may have made impossible."""
    try:
        return act(execution)
    except InvalidTransition:
        return None  # another was first
