"""One workflow of thousands of nodes, and one wide fan: each node runs once, after all that it waits for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from e2e.support.harness import System
from spanloom.engine import ExecutionStatus, NodeRun, NodeStatus

#: A part of it in every run, and the whole on every store in `make torture`: that the cost of a node does not grow with
#: their number is what the stores' test_costs.py counts.
SIDES = [45, pytest.param(100, marks=pytest.mark.torture)]
WIDTHS = [1_000, pytest.param(2_000, marks=pytest.mark.torture)]


def grid(side: int) -> list[dict[str, Any]]:
    """Return nodes that each wait for the one before it in its row and the one before it in its column."""
    return [
        {
            "id": f"r{row}c{column}",
            "type": "count",
            "inputs": [f"r{row - 1}c{column}"] * (row > 0) + [f"r{row}c{column - 1}"] * (column > 0),
        }
        for row in range(side)
        for column in range(side)
    ]


def assert_each_ran_once_and_in_order(system: System, execution_id: str, nodes: list[dict[str, Any]]) -> None:
    runs: dict[str, NodeRun] = {run.node_id: run for run in system.engine.store.get_node_results(execution_id)}
    assert Counter((run.status, run.attempt, run.recovery_attempts) for run in runs.values()) == {
        (NodeStatus.COMPLETED, 1, 0): len(nodes)
    }
    assert Counter(system.ran(execution_id)) == {node["id"]: 1 for node in nodes}
    assert {node["id"]: runs[node["id"]].data for node in nodes} == {
        node["id"]: len(node["inputs"]) for node in nodes
    }  # the data of each parent came
    early = [
        (parent, node["id"])
        for node in nodes
        for parent in node["inputs"]
        if not _ended_before(runs[parent], runs[node["id"]])
    ]
    assert early == []


def _ended_before(parent: NodeRun, child: NodeRun) -> bool:
    assert parent.ended_at is not None
    assert child.started_at is not None
    return parent.ended_at <= child.started_at


@pytest.mark.timeout(180)
@pytest.mark.parametrize("side", SIDES)
def test_the_nodes_of_a_grid_that_wait_for_their_row_and_column_run_once_each(system: System, side: int) -> None:
    nodes = grid(side)
    workflow_id = system.register(*nodes, name="grid")

    execution = system.run(workflow_id, timeout=150)

    assert execution.status is ExecutionStatus.COMPLETED
    assert execution.output == 2  # of the last corner
    assert_each_ran_once_and_in_order(system, execution.id, nodes)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_fan_of_thousands_is_joined_once(system: System, width: int) -> None:
    fan = [{"id": f"n{number}", "type": "count", "inputs": ["root"]} for number in range(width)]
    join = {"id": "join", "type": "count", "inputs": [node["id"] for node in fan]}
    nodes = [{"id": "root", "type": "count", "inputs": []}, *fan, join]
    workflow_id = system.register(*nodes, name="fan")

    execution = system.run(workflow_id, timeout=100)

    assert execution.status is ExecutionStatus.COMPLETED
    assert execution.output == width
    assert_each_ran_once_and_in_order(system, execution.id, nodes)
