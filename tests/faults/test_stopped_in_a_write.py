"""A worker that stops for good in the midst of a write that others wait for, or pass over: there must be no midst."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from spanloom.stores.postgres.store import PostgresExecutionStore
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import single

LATER = timedelta(days=1)


@pytest.fixture
def stores(postgres_url: str) -> Iterator[tuple[PostgresExecutionStore, PostgresExecutionStore]]:
    mine, theirs = PostgresExecutionStore(postgres_url), PostgresExecutionStore(postgres_url)
    yield mine, theirs
    mine.close()
    theirs.close()


def test_a_worker_that_stops_while_it_renews_its_lease_loses_its_runs_to_others(
    stores: tuple[PostgresExecutionStore, PostgresExecutionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = stores
    driver = StoreDriver(mine)
    driver.claim(driver.start(single()), "only")
    moved: list[int] = []

    def sweep() -> None:
        swept = theirs.sweep(heads={}, epoch=0, now=datetime.now(UTC) + LATER)
        moved.append(swept.moved.get("lost_worker", 0))

    def commit(connection: psycopg.Connection[object]) -> None:  # where a worker may stop, if it needs one
        sweep()
        committed(connection)

    committed = psycopg.Connection.commit
    monkeypatch.setattr(psycopg.Connection, "commit", commit)
    mine.renew_lease(driver.worker_id, lease_seconds=15)
    monkeypatch.undo()
    sweep()

    assert moved[0] == 1


def test_nothing_is_left_open_between_raising_the_epoch_and_its_commit(
    stores: tuple[PostgresExecutionStore, PostgresExecutionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = stores
    expected = store.get_epoch().epoch
    commits: list[object] = []
    monkeypatch.setattr(psycopg.Connection, "commit", commits.append)

    raised = store.raise_epoch(expected, "another life")

    assert (raised.epoch, raised.redis_run_id) == (expected + 1, "another life")
    assert store.raise_epoch(expected, "a third").redis_run_id == "another life"
    assert commits == []
