"""A worker has one lease, whoever notices that it lapsed."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from spanloom.engine.errors import StoreUnavailable
from spanloom.testing.race import race
from spanloom.worker.lease import Lease
from spanloom.worker.service import running


class Store:
    """Just enough of a store: it knows which ids were registered and which were renewed."""

    def __init__(self) -> None:
        self.registered: list[str] = []
        self.renewed: list[str] = []
        self.lapsed: set[str] = set()
        self.away = False
        self.slow = threading.Event()

    def register_worker(self, worker_id: str, **_: Any) -> None:
        if self.away:
            raise StoreUnavailable("away")
        self.slow.wait(0.05 if self.registered else 0)
        self.registered.append(worker_id)

    def renew_lease(self, worker_id: str, **_: Any) -> bool:
        self.renewed.append(worker_id)
        return worker_id not in self.lapsed


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def given_back() -> list[str]:
    return []


@pytest.fixture
def lease(store: Store, given_back: list[str]) -> Lease:
    made = Lease(store, "w", ("default",), 60.0, give_back=given_back.append)  # type: ignore[arg-type]
    made.open()
    return made


def test_a_lapse_that_two_threads_notice_at_once_opens_one_new_lease(store: Store, lease: Lease) -> None:
    (first,) = store.registered

    race([lambda: lease.replace(first)] * 8)

    assert len(store.registered) == 2
    assert lease.worker_id == store.registered[1]
    assert lease.is_lost(first)
    assert not lease.is_lost(lease.worker_id)


def test_a_renewal_that_finds_a_lapse_opens_a_new_lease(store: Store, lease: Lease) -> None:
    store.lapsed.add(lease.worker_id)

    assert lease.renew()

    assert lease.worker_id == store.registered[-1]
    assert len(store.registered) == 2


def test_a_lease_that_was_given_up_while_the_store_was_away_is_never_renewed(store: Store, lease: Lease) -> None:
    given_up, store.away = lease.worker_id, True
    with pytest.raises(StoreUnavailable):
        lease.replace(given_up)
    assert not lease.renew()
    store.away = False

    assert lease.renew()

    assert given_up not in store.renewed
    assert lease.worker_id != given_up


def test_what_is_given_back_is_the_lease_that_it_holds_then(store: Store, lease: Lease, given_back: list[str]) -> None:
    with running(lease):
        lease.replace(lease.worker_id)

    assert given_back == [store.registered[-1]]


def test_a_lease_that_is_given_up_is_given_back_at_once(store: Store, lease: Lease, given_back: list[str]) -> None:
    first = lease.worker_id

    lease.give_up(first)

    assert given_back == [first]
    assert lease.is_lost(first)
    assert lease.worker_id == store.registered[-1] != first


def test_a_lease_that_could_not_be_given_back_is_given_back_by_a_later_renewal(store: Store) -> None:
    answers = [False, False, True]
    asked: list[str] = []

    def give_back(worker_id: str) -> bool:
        asked.append(worker_id)
        return answers.pop(0)

    lease = Lease(store, "w", ("default",), 60.0, give_back=give_back)  # type: ignore[arg-type]
    lease.open()
    first = lease.worker_id
    store.away = True
    lease.give_up(first)
    store.away = False

    assert lease.renew()
    assert lease.renew()
    assert lease.renew()

    assert asked == [first] * 3
