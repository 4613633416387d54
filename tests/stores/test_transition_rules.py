"""What moves rows refuses every change of a status that states.py does not have, and writes every other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from spanloom.engine.errors import InvalidTransition
from spanloom.engine.store.requests import NodeKey
from spanloom.engine.store.states import EXECUTION_TRANSITIONS, NODE_TRANSITIONS, ExecutionStatus, NodeStatus
from spanloom.stores import InMemoryExecutionStore
from spanloom.stores.transitions.rows import ResultRow, RunFilter, RunRow
from spanloom.stores.transitions.transaction import Transaction
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import single

OPEN = [status for status in NodeStatus if not status.ended]


class _Undone(Exception):
    """Raised to undo a step that was allowed."""


@pytest.fixture
def store() -> Iterator[Any]:
    store = InMemoryExecutionStore()
    yield store
    store.close()


@pytest.fixture
def execution(store: Any) -> str:
    return StoreDriver(store).start(single())


def _allowed(store: Any, step: Callable[[Transaction], object]) -> bool:
    """Return whether the store makes this step, which is undone."""

    def undone(tx: Transaction) -> None:
        step(tx)
        raise _Undone

    try:
        store._transact(undone)
    except _Undone:
        return True
    except InvalidTransition:
        return False
    raise AssertionError


def _run(tx: Transaction, execution: str, status: NodeStatus) -> RunRow:
    """Put the node's run into a status, whatever it was in before."""
    (run,) = tx.runs([NodeKey(execution, "only")]).values()
    changed = run._replace(status=status.value)
    tx.delete_runs([run.key])
    tx.insert_runs([changed])
    return changed


def _pairs(statuses: Iterable[NodeStatus]) -> list[tuple[NodeStatus, NodeStatus]]:
    return [(old, new) for old in statuses for new in NodeStatus]


@pytest.mark.parametrize(("old", "new"), _pairs(OPEN))
def test_a_run_is_updated_only_as_the_table_has_it(
    store: Any, execution: str, old: NodeStatus, new: NodeStatus
) -> None:
    def update(tx: Transaction) -> None:
        run = _run(tx, execution, old)
        tx.update_runs([(run, run._replace(status=new.value))])
        assert tx.runs([run.key])[run.key].status == new

    assert _allowed(store, update) is (new is old or new in NODE_TRANSITIONS[old])


@pytest.mark.parametrize(("old", "new"), _pairs(OPEN))
def test_runs_are_moved_only_as_the_table_has_it(store: Any, execution: str, old: NodeStatus, new: NodeStatus) -> None:
    def move(tx: Transaction) -> None:
        run = _run(tx, execution, old)
        assert run._replace(status=new.value) in tx.move_runs(RunFilter([execution], [old]), new)
        assert tx.runs([run.key])[run.key].status == new

    assert _allowed(store, move) is (new in NODE_TRANSITIONS[old])


@pytest.mark.parametrize(("old", "new"), [(old, new) for old, new in _pairs(OPEN) if new.ended])
def test_a_run_ends_only_as_the_table_has_it(store: Any, execution: str, old: NodeStatus, new: NodeStatus) -> None:
    def end(tx: Transaction) -> None:
        run = _run(tx, execution, old)
        tx.end_runs([(run, ResultRow(*run.key, run.node_type, new.value, ended_at=tx.now))])
        assert not tx.runs([run.key])

    assert _allowed(store, end) is (new in NODE_TRANSITIONS[old])


@pytest.mark.parametrize(("old", "new"), [(old, new) for old in ExecutionStatus for new in ExecutionStatus])
def test_an_execution_takes_only_the_steps_of_the_table(
    store: Any, execution: str, old: ExecutionStatus, new: ExecutionStatus
) -> None:
    def step(tx: Transaction) -> None:
        (row,) = tx.update_executions(list(tx.executions([execution]).values()), status=old.value)
        (moved,) = tx.set_status([row], new)
        assert tx.executions([execution]) == {execution: moved}
        assert (moved.status, moved.revision) == (new, row.revision + 1)

    assert _allowed(store, step) is (new in EXECUTION_TRANSITIONS[old])


def test_of_several_changes_one_that_is_forbidden_forbids_all(store: Any, execution: str) -> None:
    other = StoreDriver(store).start("single")

    def update(tx: Transaction) -> None:
        runs = [tx.runs([key])[key] for key in (NodeKey(execution, "only"), NodeKey(other, "only"))]
        wanted = [NodeStatus.HELD, NodeStatus.WAITING]
        with pytest.raises(InvalidTransition):
            tx.update_runs([(run, run._replace(status=to.value)) for run, to in zip(runs, wanted, strict=True)])
        assert [tx.runs([run.key])[run.key] for run in runs] == runs

    store._transact(update)
