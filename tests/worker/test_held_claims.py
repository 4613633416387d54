"""A claim that the store holds for a worker, and that is in none of its slots, goes back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fakeredis import FakeRedis, FakeServer

from spanloom.engine import NodeRegistry, WorkflowEngine
from spanloom.engine.store.requests import Claim, NodeKey
from spanloom.stores import InMemoryExecutionStore
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import single
from spanloom.worker.held_claims import HeldClaims


@pytest.fixture
def engine() -> Iterator[WorkflowEngine]:
    with WorkflowEngine(NodeRegistry(), InMemoryExecutionStore(), FakeRedis(server=FakeServer())) as engine:
        yield engine


def test_a_claim_that_nobody_answers_for_goes_back_and_is_pushed_again(engine: WorkflowEngine) -> None:
    driver, held = StoreDriver(engine.store), HeldClaims(engine)
    lost, running = driver.start(single()), driver.start(single())
    keys = [NodeKey(lost, "only"), NodeKey(running, "only")]
    answers = engine.store.claim(keys, worker_id=driver.worker_id)
    assert isinstance(answers[1], Claim)
    held.claims[id(answers[1])] = answers[1]

    held.check(driver.worker_id)
    assert set(engine.store.list_claims(driver.worker_id)) == set(keys)  # it may be on its way to a slot
    held.check(driver.worker_id)

    assert set(engine.store.list_claims(driver.worker_id)) == {keys[1]}
    assert engine.queue.heads([engine.queue.list_name("default", "normal")])["default"] is not None
    assert [event.kind for event in engine.store.get_events(lost)][-2:] == ["node.released", "node.queued"]


def test_a_claim_that_has_ended_here_is_answered_for_no_longer(engine: WorkflowEngine) -> None:
    driver, held = StoreDriver(engine.store), HeldClaims(engine)
    execution = driver.start(single())
    claim = driver.try_claim(execution, "only")
    assert isinstance(claim, Claim)
    held.claims[id(claim)] = claim
    for _ in range(3):
        held.check(driver.worker_id)
    assert engine.store.list_claims(driver.worker_id)
    del held.claims[id(claim)]
    for _ in range(2):
        held.check(driver.worker_id)
    assert not engine.store.list_claims(driver.worker_id)
