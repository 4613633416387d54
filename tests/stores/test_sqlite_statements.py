"""What transitions on SQLite leave out when nothing asks for it."""

from __future__ import annotations

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
    # begin, execution, run, run out, result in, lease, run in, two events, commit
    assert len(statements) / 50 < 10.5
