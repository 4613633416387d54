"""An idle worker: the round trips to its servers, as a relay counts them, and how soon it is back at its usual pace."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from spanloom.engine import Node, NodeRegistry, Workflow, WorkflowEngine
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.queue.redis_epoch import Epoch
from spanloom.engine.store.requests import SweepResult
from spanloom.stores import InMemoryExecutionStore
from spanloom.testing.servers import RedisServer
from spanloom.worker import WorkerOptions, held_claims, worker
from spanloom.worker.node.claim_monitor import ClaimMonitor
from spanloom.worker.service import WorkerEvents
from spanloom.worker.slots import Slots
from spanloom.worker.sweeper import Sweeper
from support.counting_relay import CountingRelay, counting_relay

FASTER = 5  #: all periods of the worker here are shorter by this factor than the usual ones
MOST_A_SECOND = 3.0


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The options of a worker whose periods are shorter."""
    monkeypatch.setattr(worker, "_BLOCK_SECONDS", 5.0 / FASTER)
    monkeypatch.setattr(ClaimMonitor, "orphan_seconds", 5.0 / FASTER)
    monkeypatch.setattr(held_claims, "_QUIET_SECONDS", 5.0 / FASTER)
    return {"sweep_seconds": 0.5 / FASTER, "lease_seconds": 15 / FASTER}


@pytest.fixture
def redis_relay(tmp_path: Path, own_redis: RedisServer) -> Iterator[CountingRelay]:
    with counting_relay(tmp_path / "redis", own_redis.socket_path) as relay:
        yield relay


@pytest.fixture
def postgres_relay(tmp_path: Path, postgres_url: str) -> Iterator[CountingRelay]:
    at = parse_qs(urlsplit(postgres_url).query)
    name = f".s.PGSQL.{at['port'][0]}"
    with counting_relay(tmp_path / name, Path(at["host"][0], name)) as relay:
        yield relay


def registry() -> NodeRegistry:
    made = NodeRegistry()
    made.register("echo", lambda data: data)
    return made


def test_an_idle_worker_makes_less_than_three_round_trips_a_second(
    tmp_path: Path,
    redis_relay: CountingRelay,
    postgres_relay: CountingRelay,
    postgres_url: str,
    faster: dict[str, float],
) -> None:
    at = parse_qs(urlsplit(postgres_url).query)
    url = postgres_url.replace(at["host"][0], str(tmp_path))
    engine = WorkflowEngine(registry(), url, f"unix://{tmp_path}/redis")
    engine.register_workflow(Workflow(id="w", nodes=(Node(id="a", type="echo"),)))
    with engine, engine.start_workers(1, **faster):
        assert engine.run("w", 7, timeout=30) == 7
        threading.Event().wait(2 * 5.0 / FASTER)  # until what has run is looked at no more
        before, began = (redis_relay.round_trips, postgres_relay.round_trips), time.monotonic()

        threading.Event().wait(15 / FASTER)

        seconds = (time.monotonic() - began) * FASTER
        redis, postgres = redis_relay.round_trips - before[0], postgres_relay.round_trips - before[1]
        assert 0.8 < redis / seconds < 2.0, "it looks at Redis once in a while"
        assert 0.8 < postgres / seconds < 2.0
        assert (redis + postgres) / seconds < MOST_A_SECOND
        assert engine.run("w", 8, timeout=30) == 8


class KnowingStore(InMemoryExecutionStore):
    """A store that knows when something is due."""

    due_in_seconds = 0.0

    def sweep(self, **_: Any) -> SweepResult:
        return SweepResult((), {}, due_in_seconds=self.due_in_seconds)


@pytest.fixture
def slots() -> Iterator[Slots]:
    made = Slots(1, "s")
    yield made
    made.close()


@pytest.fixture
def store() -> Iterator[KnowingStore]:
    with closing(KnowingStore()) as made:
        yield made


@pytest.fixture
def sweeper(redis_url: str, store: KnowingStore, slots: Slots) -> Iterator[Sweeper]:
    queue, options = NodeQueue(redis_url, "shop"), WorkerOptions(sweep_seconds=0.5)
    yield Sweeper(store, queue, Epoch(store, queue), ["shop.default"], options, WorkerEvents(), None, slots)
    queue.close()


@pytest.mark.parametrize(
    ("due_in", "more"), [(math.inf, 0.5), (60.0, 0.5), (0.75, 0.25), (0.5, 0.0), (0.0, 0.0), (-3.0, 0.0)]
)
def test_the_pause_is_longer_by_so_much_as_nothing_is_due(
    store: KnowingStore, sweeper: Sweeper, due_in: float, more: float
) -> None:
    store.due_in_seconds = due_in

    sweeper.sweep()

    assert sweeper._more_pause == more


def test_the_pause_is_the_usual_one_where_something_runs_or_has_run(
    store: KnowingStore, sweeper: Sweeper, slots: Slots
) -> None:
    store.due_in_seconds, gate = math.inf, threading.Event()
    sweeper.sweep()
    assert sweeper._idle()

    slots.submit(lambda: bool(gate.wait(30)) and None)
    assert not sweeper._idle(), "it runs"
    gate.set()
    assert slots.wait_idle(30)
    assert not sweeper._idle(), "it has run"

    sweeper.sweep()
    assert sweeper._idle()
