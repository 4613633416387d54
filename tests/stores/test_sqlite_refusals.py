"""What no SQLite column holds is refused in words, as Postgres refuses it, and nothing is kept of it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from spanloom.engine import ExecutionFilter, ExecutionStatus, Node, NodeRegistry, Workflow, WorkflowEngine
from spanloom.engine.errors import InvalidArgument, SpanloomError, StoreRefused, StoreUnavailable, Unavailability
from spanloom.stores import SqliteExecutionStore
from spanloom.stores.sqlite import connections
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.race import race
from spanloom.testing.workflows import single

HALF = "\ud800"


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[WorkflowEngine]:
    registry = NodeRegistry()
    registry.node("echo")(lambda data: data)
    engine = WorkflowEngine(registry, sqlite_url, "redis://127.0.0.1:1")
    engine.register_workflow(Workflow(id="w", nodes=[Node(id="a", type="echo")]))
    yield engine
    engine.close()


@pytest.mark.parametrize(
    "use",
    [
        lambda engine: engine.enqueue_workflow("w", version=2**70),
        lambda engine: engine.enqueue_workflow(HALF),
        lambda engine: engine.enqueue_workflow("w", idempotency_key=HALF),
        lambda engine: engine.enqueue_workflow("w", metadata={"file": HALF}),
        lambda engine: engine.cancel_execution(HALF),
        lambda engine: engine.store.list_executions(ExecutionFilter(workflow_id=HALF)),
        lambda engine: engine.register_workflow(Workflow(id="x", nodes=[Node(id="a", type="echo")]), HALF),
    ],
)
def test_what_no_column_holds_is_refused(engine: WorkflowEngine, use: Callable[[WorkflowEngine], object]) -> None:
    with pytest.raises(SpanloomError):
        use(engine)

    assert engine.store.get_execution_count(ExecutionFilter()) == 0
    assert [one.id for one in engine.store.list_workflows().items] == ["w"]


@pytest.mark.parametrize("field", ["delay_seconds", "deadline_seconds", "key_ttl_seconds"])
def test_a_time_that_could_not_be_read_as_a_date_is_refused(engine: WorkflowEngine, field: str) -> None:
    wanted = request("w", idempotency_key="key", input_hash="hash", **{field: 1e12})  # 33,000 years
    with pytest.raises(InvalidArgument):
        engine.store.create_execution(wanted)
    assert engine.store.get_execution_count() == 0


# ---- what is never kept, and what not now ----


@pytest.fixture
def store(sqlite_url: str) -> Iterator[SqliteExecutionStore]:
    store = SqliteExecutionStore(sqlite_url.removeprefix("sqlite:///"))
    store.save_workflow(single())
    yield store
    store.close()


@contextmanager
def writer(store: SqliteExecutionStore) -> Iterator[sqlite3.Connection]:
    with store._writing():
        yield store._live().raw_writer


@contextmanager
def too_long(store: SqliteExecutionStore) -> Iterator[None]:
    with writer(store) as raw:
        limit = raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1000)
    yield
    raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limit)


@contextmanager
def trigger(store: SqliteExecutionStore) -> Iterator[None]:
    with writer(store) as raw:
        raw.execute(
            "create trigger refuse before insert on node_results begin select raise(abort, 'no such words'); end"
        )
    yield
    with writer(store) as raw:
        raw.execute("drop trigger refuse")


@contextmanager
def read_only(store: SqliteExecutionStore) -> Iterator[None]:
    with writer(store) as raw:
        pass
    raw.execute("pragma query_only = on")
    yield
    raw.execute("pragma query_only = off")


@contextmanager
def unauthorized(store: SqliteExecutionStore) -> Iterator[None]:
    with writer(store) as raw:
        pass
    raw.set_authorizer(lambda action, *_: sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_INSERT else sqlite3.SQLITE_OK)
    yield
    raw.set_authorizer(None)


@contextmanager
def missing_table(store: SqliteExecutionStore) -> Iterator[None]:
    with writer(store) as raw:
        raw.execute("alter table node_results rename to elsewhere")
    yield
    with writer(store) as raw:
        raw.execute("alter table elsewhere rename to node_results")


@contextmanager
def full_disk(store: SqliteExecutionStore) -> Iterator[None]:
    with writer(store) as raw:
        (pages,) = raw.execute("pragma page_count").fetchone()
        raw.execute(f"pragma max_page_count = {pages}")
    yield
    raw.execute(f"pragma max_page_count = {pages + 10_000}")


@contextmanager
def locked(store: SqliteExecutionStore) -> Iterator[None]:
    other = sqlite3.connect(store._path, isolation_level=None)
    other.execute("begin immediate")
    yield
    other.execute("rollback")
    other.close()


@pytest.mark.parametrize(
    ("refuse", "error", "reason"),
    [
        (too_long, StoreRefused, None),
        (trigger, StoreRefused, None),
        (read_only, StoreUnavailable, Unavailability.READ_ONLY),
        (unauthorized, StoreUnavailable, Unavailability.RIGHTS),
        (missing_table, StoreUnavailable, Unavailability.SCHEMA),
        (full_disk, StoreUnavailable, Unavailability.RESOURCES),
        (locked, StoreUnavailable, Unavailability.LOCKED),
    ],
)
def test_a_record_that_is_refused_is_never_to_be_kept_or_not_now(
    store: SqliteExecutionStore,
    monkeypatch: pytest.MonkeyPatch,
    refuse: Callable[[SqliteExecutionStore], AbstractContextManager[None]],
    error: type[SpanloomError],
    reason: Unavailability | None,
) -> None:
    monkeypatch.setattr(connections, "BUSY_SECONDS", 0.01)
    driver = StoreDriver(store)
    execution = driver.start("single")
    record = driver.outcome(execution, driver.claim(execution, "only"), data="x" * 100_000)
    with refuse(store), pytest.raises(error) as refused:
        driver.send(record)
    assert getattr(refused.value, "reason", None) is reason
    assert driver.send(record).recorded


_connect = sqlite3.connect


def as_if_read_only(*args: Any, **options: Any) -> sqlite3.Connection:
    """Open a connection as SQLite does while the file can't be written."""
    connection = _connect(*args, **options)
    connection.execute("pragma query_only = on")
    return connection


def test_a_writer_that_found_the_file_read_only_is_opened_anew(
    store: SqliteExecutionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = StoreDriver(store)
    execution = driver.start("single")
    node = driver.claim(execution, "only")
    store._connections.close()
    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "connect", as_if_read_only)
        with pytest.raises(StoreUnavailable):
            driver.record(execution, node)
    assert driver.record(execution, node).recorded


def test_what_one_thread_writes_without_end_holds_no_other_for_ever(
    store: SqliteExecutionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "TURN_SECONDS", 0.05)
    store.open()
    with store.transaction():
        (refused,) = race([lambda: _refusal(store)])
    assert "another thread of this process" in refused
    assert store.save_workflow(single("other")) == 1


def _refusal(store: SqliteExecutionStore) -> str:
    with pytest.raises(StoreUnavailable) as refused:
        store.save_workflow(single("other"))
    return str(refused.value)


def test_workers_wait_while_the_file_can_not_be_written(
    sqlite_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = NodeRegistry()
    runs, go_on = threading.Event(), threading.Event()

    @registry.node("waits")
    def waits(data: int) -> int:
        runs.set()
        assert go_on.wait(30)
        return data

    engine = WorkflowEngine(registry, sqlite_url, redis_url)
    with engine, capture_logs() as lines, engine.start_workers(1, concurrency=2, lease_seconds=1.0) as (worker,):
        engine.register_workflow(Workflow(id="w", nodes=[Node(id=name, type="waits") for name in "abc"]))
        execution_id = engine.enqueue_workflow("w", 1)
        assert runs.wait(30)
        with monkeypatch.context() as patched:
            patched.setattr(sqlite3, "connect", as_if_read_only)
            engine.store.close()
            go_on.set()
            pause = threading.Event()
            for _ in range(3000):
                if any(line["event"] == "record_waits_for_store" for line in lines):
                    break
                pause.wait(0.01)
            assert any("write access" in problem for problem in worker.store_problems)
            pause.wait(1.5)  # longer than the lease
        ended = engine.wait(execution_id, timeout=30)
    assert ended.status is ExecutionStatus.COMPLETED
    assert ended.output == {"a": 1, "b": 1, "c": 1}
