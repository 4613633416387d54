"""What transitions on SQLite leave out when nothing asks for it."""

from __future__ import annotations

import re

import pytest

from spanloom.engine.store.requests import Claim, NodeKey
from spanloom.stores import InMemoryExecutionStore
from spanloom.testing.driver import StoreDriver, request
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


@pytest.mark.parametrize("executions", [1, 32, 63])
def test_no_statement_of_a_wave_scans_a_table(executions: int) -> None:
    store = InMemoryExecutionStore()
    driver = StoreDriver(store)
    store.save_workflow(chain(2))
    tables = "executions|node_runs|node_results|events|workers"
    statements: list[str] = []
    raw = store._live().raw_writer
    raw.set_trace_callback(statements.append)
    store.create_executions([request("chain") for _ in range(executions)])
    ids = [str(row[0]) for row in raw.execute("SELECT id FROM executions").fetchall()]
    keys = [NodeKey(execution_id, "n1") for execution_id in ids]
    answered = store.claim(keys, worker_id=driver.worker_id)
    wave = [(claim.header, claim.node) for claim in answered if isinstance(claim, Claim)]
    for successors in (("n2",), ()):
        records = [driver.outcome(header.execution_id, node, successors=successors) for header, node in wave]
        answers = store.record(records)
        wave = [(header, one.next) for (header, _), one in zip(wave, answers, strict=True) if one.next is not None]
    raw.set_trace_callback(None)
    assert all(answer.ended is not None for answer in answers)
    plans = {
        statement: raw.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
        for statement in statements
        if not statement.startswith(("BEGIN", "COMMIT", "PRAGMA", "SELECT id FROM executions"))
    }
    assert len(plans) > 10
    scans = [step for plan in plans.values() for *_, step in plan if re.match(rf"SCAN ({tables})\b", step)]
    assert scans == []
