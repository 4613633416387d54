"""Behaviours 1-3, 5, 11: what is registered, what is refused, and that nothing of a refused definition stays."""

from __future__ import annotations

import itertools
import sqlite3
import threading

import psycopg
import pytest

from e2e.support.harness import System
from spanloom.engine import (
    ExecutionStatus,
    Node,
    SpanloomError,
    StaleVersion,
    UnknownWorkflow,
    Workflow,
    WorkflowInvalid,
)


def test_every_problem_of_a_graph_is_named_in_one_error_and_nothing_is_saved(system: System) -> None:
    broken = Workflow.model_validate(
        {
            "id": f"broken-{system.kind}",
            "nodes": [
                {"id": "a", "type": "echo", "inputs": ["c"]},
                {"id": "b", "type": "echo", "inputs": ["a"]},
                {"id": "c", "type": "echo", "inputs": ["b"]},
                {"id": "twice", "type": "echo"},
                {"id": "twice", "type": "echo"},
                {"id": "lost", "type": "echo", "inputs": ["nowhere"]},
                {"id": "alien", "type": "no-such-type"},
                {"id": "odd id!", "type": "echo"},
                {"id": "late", "type": "delay", "config": {"seconds": -1}},
                {"id": "child", "type": "workflow", "config": {}},
            ],
        }
    )

    with pytest.raises(WorkflowInvalid) as refused:
        system.engine.register_workflow(broken)

    told = "\n".join(refused.value.problems)
    for name in ("a → b → c → a", "twice", "nowhere", "no-such-type", "odd id!", "'late'", "'child'"):
        assert name in told, told
    assert system.engine.store.get_workflow(broken.id) is None


def test_an_empty_graph_is_refused(system: System) -> None:
    with pytest.raises(WorkflowInvalid, match="no node"):
        system.engine.register_workflow(Workflow(id="empty", nodes=()))
    assert system.engine.store.get_workflow("empty") is None


@pytest.mark.stores("sqlite", "postgres", why="nothing can fail between an in-memory store and its memory")
def test_a_failed_write_of_the_definition_fails_the_registration(system: System) -> None:
    workflow = Workflow(id=f"unsaved-{system.kind}", nodes=(Node(id="a", type="echo"),))
    with _failing_writes(system), pytest.raises(SpanloomError):
        system.engine.register_workflow(workflow)

    assert system.engine.store.get_workflow(workflow.id) is None
    assert system.engine.register_workflow(workflow) == 1


def test_equal_content_makes_no_new_version_and_other_content_the_next(system: System) -> None:
    first = Workflow(id=f"versions-{system.kind}", nodes=(Node(id="a", type="echo"),))
    second = Workflow(id=first.id, nodes=(Node(id="a", type="echo"), Node(id="b", type="echo", inputs=["a"])))

    assert system.engine.register_workflow(first) == 1
    assert system.engine.register_workflow(first) == 1
    assert system.engine.register_workflow(second) == 2
    assert system.engine.register_workflow(first) == 3
    with pytest.raises(StaleVersion) as stale:
        system.engine.register_workflow(second, expected_version=2)
    assert (stale.value.expected, stale.value.actual) == (2, 3)


def test_concurrent_registrations_get_distinct_versions_or_one_for_equal_content(system: System) -> None:
    versions: list[int] = []
    barrier = threading.Barrier(8)

    def register(number: int) -> None:
        workflow = Workflow(id=f"raced-{system.kind}", nodes=(Node(id=f"n{number % 4}", type="echo"),))
        barrier.wait(10)
        versions.append(system.engine.register_workflow(workflow))

    threads = [threading.Thread(target=register, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    saved = system.engine.store.list_workflow_versions(f"raced-{system.kind}").items
    assert len(versions) == 8
    assert [one.version for one in saved] == list(range(len(saved), 0, -1))
    for newer, older in itertools.pairwise(saved):
        assert newer.definition.digest() != older.definition.digest()


def test_a_deactivated_workflow_starts_nothing_until_it_is_activated(system: System) -> None:
    workflow_id = system.register({"id": "a", "type": "echo"})
    running = system.engine.enqueue_workflow(workflow_id, 1)

    system.engine.store.deactivate_workflow(workflow_id)

    with pytest.raises(UnknownWorkflow, match="deactivated"):
        system.engine.enqueue_workflow(workflow_id, 2)
    assert system.engine.wait(running, timeout=30).output == 1  # what runs goes on
    system.engine.store.activate_workflow(workflow_id)
    assert system.run(workflow_id, 3).output == 3


def test_isolated_nodes_are_entry_nodes_and_run(system: System) -> None:
    workflow_id = system.register({"id": "a", "type": "name"}, {"id": "b", "type": "name"}, {"id": "c", "type": "name"})

    execution = system.run(workflow_id)

    assert execution.status is ExecutionStatus.COMPLETED
    assert execution.output == {"a": "a", "b": "b", "c": "c"}
    assert sorted(system.ran(execution.id)) == ["a", "b", "c"]


def test_a_single_node_workflow_works(system: System) -> None:
    workflow_id = system.register({"id": "only", "type": "echo"})

    assert system.run(workflow_id, {"x": 1}).output == {"x": 1}


@pytest.mark.torture  # two thousand nodes in a grid run every time, in test_large.py
def test_ten_thousand_nodes_that_one_joins_work(system: System) -> None:
    width = 9_998
    nodes = [{"id": "start", "type": "value", "config": {"value": 7}}]
    nodes += [{"id": f"n{number}", "type": "echo", "inputs": ["start"]} for number in range(width)]
    nodes += [{"id": "end", "type": "count", "inputs": [f"n{number}" for number in range(width)]}]
    workflow_id = system.register(*nodes)

    execution = system.run(workflow_id, timeout=100)

    assert execution.output == width
    assert len(system.ran(execution.id)) == width + 2


class _failing_writes:
    """Make the database itself refuse new versions."""

    def __init__(self, system: System) -> None:
        self.system = system

    def __enter__(self) -> None:
        if self.system.kind == "sqlite":
            self._sqlite(
                "create trigger refuse before insert on workflow_versions"
                " begin select raise(abort, 'the disk is on fire'); end"
            )
        else:
            self._postgres(
                "create function spanloom.refuse() returns trigger language plpgsql as"
                " $$ begin raise exception 'the disk is on fire'; end $$;"
                " create trigger refuse before insert on spanloom.workflow_versions"
                " for each row execute function spanloom.refuse()"
            )

    def __exit__(self, *exc_info: object) -> None:
        if self.system.kind == "sqlite":
            self._sqlite("drop trigger refuse")
        else:
            self._postgres("drop function spanloom.refuse() cascade")

    def _sqlite(self, statement: str) -> None:
        connection = sqlite3.connect(self.system.store_url.removeprefix("sqlite:///"), timeout=30)
        connection.execute(statement)
        connection.commit()
        connection.close()

    def _postgres(self, statement: str) -> None:
        with psycopg.connect(self.system.store_url, autocommit=True) as connection:
            connection.execute(statement)
