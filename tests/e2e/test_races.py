"""Behaviours 3 and 24: two processes that register a workflow, or start one under a key, at the same instant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spanloom.engine import ExecutionFilter, ExecutionStore
from spanloom.stores import open_store

pytestmark = pytest.mark.every_store

RACES = [10, pytest.param(50, marks=pytest.mark.torture)]
MOST_RACES = 100  #: until each was first once
SOON_SECONDS = (0.02, 0.5)  #: at first and at most: enough for both to have read what they are to do
RACING = Path(__file__).parent / "support" / "racing.py"


class Racer:
    """A process that does what it is told, when it is told; `late` says that it was told too late."""

    def __init__(self, store_url: str, redis_url: str) -> None:
        environment = {**os.environ, "SPANLOOM_STORE_URL": store_url, "SPANLOOM_REDIS_URL": redis_url}
        self.process = subprocess.Popen(
            [sys.executable, str(RACING)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.late = False
        self.soon_seconds = SOON_SECONDS[0]

    def tell(self, asked: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{json.dumps(asked)}\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        said = json.loads(self.process.stdout.readline())
        self.late = said["late"]
        if self.late:
            self.soon_seconds = min(2 * self.soon_seconds, SOON_SECONDS[1])
        return said["answer"]

    def close(self) -> None:
        self.process.communicate(timeout=30)


@pytest.fixture
def racers(shared_store_url: str, redis_url: str) -> Iterator[list[Racer]]:
    made = [Racer(shared_store_url, redis_url) for _ in range(2)]
    try:
        assert [racer.answer() for racer in made] == ["ready"] * 2
        yield made
    finally:
        for racer in made:
            racer.close()
    assert [racer.process.returncode for racer in made] == [0, 0]


@pytest.fixture
def store(shared_store_url: str) -> Iterator[ExecutionStore]:
    store = open_store(shared_store_url)
    yield store
    store.close()


def race(racers: list[Racer], *asked: dict[str, Any]) -> list[Any]:
    """Let each of them do one thing at the same instant, and return their answers."""
    at = time.time() + max(racer.soon_seconds for racer in racers)
    for racer, one in zip(racers, asked, strict=True):
        racer.tell({**one, "at": at})
    return [racer.answer() for racer in racers]


def flow(workflow_id: str, *nodes: str) -> dict[str, Any]:
    return {"workflow": {"id": workflow_id, "nodes": [{"id": node, "type": "work"} for node in nodes]}}


@pytest.mark.parametrize("races", RACES)
def test_registrations_and_keyed_starts_of_two_processes_do_not_meet(
    racers: list[Racer], store: ExecutionStore, races: int
) -> None:
    first_to_register: Counter[int] = Counter()
    number = 0
    while number < races or (len(first_to_register) < 2 and number < MOST_RACES):
        # different content: two versions, whoever is first; each process is told its own
        nodes = (f"a{number}", f"b{number}")
        versions = race(racers, *(flow("distinct", node) for node in nodes))
        assert sorted(versions) == [2 * number + 1, 2 * number + 2]
        for version, node in zip(versions, nodes, strict=True):
            saved = store.get_workflow("distinct", version)
            assert saved is not None
            assert [one.id for one in saved.nodes] == [node]
        if not any(racer.late for racer in racers):
            first_to_register[versions[0] % 2] += 1

        # equal content: one version
        equal = f"equal{number}"
        assert race(racers, *[flow(equal, "a", "b")] * 2) == [1, 1]
        assert [one.version for one in store.list_workflow_versions(equal).items] == [1]

        # one key: one execution, and no node run beyond its own
        start = {"start": equal, "data": {"n": number}, "key": "order-7"}
        mine, yours = race(racers, start, start)
        assert mine == yours
        assert [one.id for one in store.list_executions(ExecutionFilter(workflow_id=equal)).items] == [mine]
        assert [run.node_id for run in store.get_node_results(mine)] == ["a", "b"]
        number += 1
    assert sum(store.stats().open_node_runs.values()) == 2 * number
    assert len(first_to_register) == 2, "one of them was always first: they did not race"
