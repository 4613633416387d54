"""Many executions over many worker processes on one store: every node run recorded once, none lost, none stuck."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from e2e.support.harness import System, worker_processes
from e2e.support.harness import system as new_system
from spanloom.engine import ExecutionFilter, ExecutionStatus
from spanloom.testing.servers import RedisServer

WIDTH = 20


@pytest.fixture
def bare_system(request: pytest.FixtureRequest, own_redis: RedisServer) -> Iterator[System]:
    """A system on an empty store of the kind that is asked for, without workers."""
    kind: str = request.param
    url = request.getfixturevalue(f"{kind}_url")
    with new_system(kind, url, own_redis.url, workers=0) as made:
        yield made


@pytest.mark.parametrize(
    ("bare_system", "workers", "executions"),
    [
        ("postgres", 4, 50),
        ("sqlite", 4, 50),
        *(
            pytest.param(kind, workers, 1_000, marks=pytest.mark.torture)
            for kind, most in (("postgres", 8), ("sqlite", 4))
            for workers in sorted({2, 4, most})
        ),
    ],
    indirect=["bare_system"],
)
def test_many_fans_lose_nothing_and_run_nothing_twice(bare_system: System, workers: int, executions: int) -> None:
    system = bare_system
    workflow_id = system.register(
        {"id": "root", "type": "echo"},
        *[{"id": f"n{number}", "type": "echo", "inputs": ["root"]} for number in range(WIDTH)],
        {"id": "join", "type": "count", "inputs": [f"n{number}" for number in range(WIDTH)]},
    )
    with worker_processes(workers, system.store_url, system.redis_url):
        ids = system.engine.enqueue_workflows(workflow_id, range(executions))
        outputs = Counter(system.engine.wait(execution_id, timeout=600).output for execution_id in ids)

    assert outputs == {WIDTH: executions}
    store = system.engine.store
    assert store.get_execution_count(ExecutionFilter(status=ExecutionStatus.COMPLETED)) == executions
    assert not any(store.stats().open_node_runs.values())
    ran = Counter(len(system.ran(execution_id)) for execution_id in ids)
    assert ran == {WIDTH + 2: executions}  # each handler ran once
    events = Counter(event.kind for event in store.get_events(ids[-1]))
    assert events["node.completed"] == WIDTH + 2
    assert events["execution.completed"] == 1


@pytest.mark.torture
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("bare_system", ["postgres", "sqlite"], indirect=True)
def test_a_hundred_parents_that_end_together_in_four_processes_are_joined_once_two_thousand_times(
    bare_system: System,
) -> None:
    system = bare_system
    parents = [{"id": f"p{number}", "type": "aligned"} for number in range(100)]
    join = {"id": "join", "type": "count", "inputs": [node["id"] for node in parents]}
    workflow_id = system.register(*parents, join)
    with worker_processes(4, system.store_url, system.redis_url, "--concurrency", "50"):
        ids = system.engine.enqueue_workflows(workflow_id, [None] * 2_000)
        outputs = Counter(system.engine.wait(execution_id, timeout=1_500).output for execution_id in ids)

    assert outputs == {100: 2_000}
    assert Counter(tuple(system.ran(execution_id)) for execution_id in ids) == {("join",): 2_000}
    assert not any(system.engine.store.stats().open_node_runs.values())
    together = [_ends_at_once(system, execution_id) for execution_id in ids[::100]]
    assert max(together) > 4, together  # or they did not meet


def _ends_at_once(system: System, execution_id: str) -> int:
    """Return how many of its nodes have ended in the same hundredth of a second, at most."""
    events = system.engine.store.get_events(execution_id)
    ended = Counter(round(event.at.timestamp(), 2) for event in events if event.kind == "node.completed")
    return max(ended.values())
