"""What transitions on SQLite leave out when nothing asks for it."""

from __future__ import annotations

import pytest

from spanloom.stores import InMemoryExecutionStore
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import chain


def test_a_chain_costs_no_statement_for_what_it_does_not_use() -> None:
    store = InMemoryExecutionStore()
    driver = StoreDriver(store)
    statements: list[str] = []
    driver.start(chain(50))
    driver.drain()
    driver.start("chain")
    store._live().raw_writer.set_trace_callback(statements.append)
    driver.drain()
    store._live().raw_writer.set_trace_callback(None)
    assert sum("INTO node_results" in one for one in statements) == 50
    # begin, execution, run, lease, run out, run in, result in, last event, events in, commit
    assert len(statements) / 50 < 10.5


@pytest.mark.parametrize("length", [1, 2])
def test_records_of_many_executions_cost_hardly_more_statements_than_one(length: int) -> None:
    alone, wave = _statements_of_records(length, 1), _statements_of_records(length, 32)
    assert alone > 5
    assert wave <= alone + 4  # some take 64 rows, in two statements


def _statements_of_records(length: int, executions: int) -> int:
    """Count the statements of one call that records the first nodes of chains."""
    store = InMemoryExecutionStore()
    driver = StoreDriver(store)
    store.save_workflow(chain(length))
    ids = sorted(driver.start("chain") for _ in range(executions))
    claims = [(execution_id, driver.claim(execution_id, "n1")) for execution_id in ids]
    successors = ("n2",) if length > 1 else ()
    statements: list[str] = []
    store._live().raw_writer.set_trace_callback(statements.append)
    answers = store.record(
        [driver.outcome(execution_id, claim)._replace(successors=successors) for execution_id, claim in claims]
    )
    store._live().raw_writer.set_trace_callback(None)
    assert all(answer.recorded and answer.next is not None for answer in answers) == (length > 1)
    return len(statements)
