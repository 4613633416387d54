"""Rows, statements and rules that must be kept in step with the schema and with the states."""

from __future__ import annotations

import re

import pytest
import sqlalchemy as sa

from spanloom.engine.store.states import WaitKind
from spanloom.stores.schema import executions, idempotency_keys, metadata, node_results, node_runs
from spanloom.stores.sql.deletion import delete_statements
from spanloom.stores.sql.statements import EXECUTION_COLUMNS, RESULT_COLUMNS, RUN_COLUMNS
from spanloom.stores.transitions.rows import ExecutionRow, ResultRow, RunRow
from spanloom.stores.transitions.waits.rules import WAITS


@pytest.mark.parametrize(("row", "table"), [(RunRow, node_runs), (ResultRow, node_results)])
def test_a_row_has_the_columns_of_its_table_in_their_order(
    row: type[RunRow] | type[ResultRow], table: sa.Table
) -> None:
    assert row._fields == tuple(column.name for column in table.columns)


def test_what_is_selected_is_read_into_the_fields_of_that_name() -> None:
    assert RunRow._fields == RUN_COLUMNS
    assert ResultRow._fields == RESULT_COLUMNS
    assert ExecutionRow._fields == EXECUTION_COLUMNS
    assert set(EXECUTION_COLUMNS) <= set(executions.columns.keys())


def test_a_purge_deletes_from_every_table_that_names_an_execution() -> None:
    naming = {table for table in metadata.tables.values() if "execution_id" in table.columns}
    deleted = [re.fullmatch(r"DELETE FROM \{s\}(\w+) WHERE .*", statement) for statement in delete_statements()]
    names = [found[1] for found in deleted if found is not None]
    assert len(names) == len(delete_statements()) == len(set(names))
    # which Transaction.delete_executions counts
    assert {metadata.tables[name] for name in names} == naming - {idempotency_keys}


def test_every_kind_of_wait_has_its_rule() -> None:
    assert list(WAITS) == list(WaitKind)
    # a wait that is due after a time has started nothing that a retry could find again
    assert all(rule.on_retry == "anew" for rule in WAITS.values() if rule.timed)
