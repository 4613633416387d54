"""A database that refuses a result: the node fails and says so, instead of running for ever."""

from __future__ import annotations

import sqlite3

import psycopg
import pytest

from e2e.support.harness import System
from spanloom.engine import ExecutionStatus


@pytest.mark.stores("sqlite", "postgres", why="nothing can come between an in-memory store and its memory")
def test_a_result_that_the_database_refuses_fails_its_node(system: System) -> None:
    _refuse_results(system)
    workflow_id = system.register({"id": "a", "type": "echo"}, {"id": "b", "type": "echo", "inputs": ["a"]})

    refused = system.run(workflow_id, "unwanted")
    kept = system.run(workflow_id, "wanted")

    assert refused.status is ExecutionStatus.FAILED
    assert refused.error is not None
    assert refused.error["type"] == "StoreRefused"
    assert "no such words here" in refused.error["message"]
    assert kept.output == "wanted"


def _refuse_results(system: System) -> None:
    if system.kind == "sqlite":
        connection = sqlite3.connect(system.store_url.removeprefix("sqlite:///"), timeout=30)
        connection.execute(
            "create trigger refuse before insert on node_results when new.data = '\"unwanted\"'"
            " begin select raise(abort, 'no such words here'); end"
        )
        connection.commit()
        connection.close()
        return
    with psycopg.connect(system.store_url, autocommit=True) as connection:
        connection.execute(
            "create function spanloom.refuse() returns trigger language plpgsql as"
            " $$ begin raise exception 'no such words here'; end $$;"
            " create trigger refuse before insert on spanloom.node_results"
            " for each row when (new.data = '\"unwanted\"') execute function spanloom.refuse()"
        )
