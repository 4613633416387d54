"""One SQLite file under several processes and threads, and what an interrupted transaction leaves."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spanloom.engine.errors import PayloadRejected, StoreUnavailable
from spanloom.engine.store.states import ExecutionStatus, NodeStatus
from spanloom.stores import SqliteExecutionStore
from spanloom.stores.sqlite import connections as sqlite_connections
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.workflows import chain, fan, graph, single

WIDTH = 100

RUN_SHARE = """
import sys
from spanloom.stores import SqliteExecutionStore
from spanloom.testing.driver import StoreDriver
path, first, step, width, *executions = sys.argv[1:]
store = SqliteExecutionStore(path, synchronous="normal")
driver = StoreDriver(store)
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(first), int(width), int(step)):
    for execution in executions:
        driver.run(execution, f"w{number + 1}")
driver.drain()
store.close()
"""

DIE_INSIDE = """
import os, sys
from spanloom.stores import SqliteExecutionStore
from spanloom.testing.driver import StoreDriver
store = SqliteExecutionStore(sys.argv[1])
driver = StoreDriver(store)
node = driver.claim(sys.argv[2], "n1")
with store.transaction():
    assert driver.record(sys.argv[2], node, data=1).recorded
    assert store.get_node_results(sys.argv[2], ["n1"])[0].status == "completed"
    os._exit(7)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteExecutionStore]:
    store = SqliteExecutionStore(path, synchronous="normal")
    yield store
    store.close()


def assert_each_ran_once(store: SqliteExecutionStore, execution: str) -> None:
    found = store.get_execution(execution)
    assert found is not None
    assert found.status is ExecutionStatus.COMPLETED
    runs = store.get_node_results(execution)
    assert len(runs) == WIDTH + 2
    assert {run.status for run in runs} == {NodeStatus.COMPLETED}
    kinds = Counter(event.kind for event in store.get_events(execution))
    assert kinds["node.completed"] == kinds["node.started"] == WIDTH + 2
    assert kinds["execution.completed"] == 1


def test_a_wide_join_recorded_from_four_processes_runs_once(store: SqliteExecutionStore, path: Path) -> None:
    driver = StoreDriver(store)
    executions = [driver.start(fan(WIDTH)) for _ in range(3)]
    for execution in executions:
        driver.run(execution, "split")
    children = [
        subprocess.Popen(
            [sys.executable, "-c", RUN_SHARE, str(path), str(first), "4", str(WIDTH), *executions],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in range(4)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        child.communicate()
    assert [child.returncode for child in children] == [0, 0, 0, 0]
    for execution in executions:
        assert_each_ran_once(store, execution)


def test_a_wide_join_recorded_from_eight_threads_runs_once(store: SqliteExecutionStore) -> None:
    driver = StoreDriver(store)
    executions = [driver.start(fan(WIDTH)) for _ in range(3)]
    for execution in executions:
        driver.run(execution, "split")
    start = threading.Barrier(8)

    def share(first: int) -> None:
        own = StoreDriver(store)
        start.wait()
        for number in range(first, WIDTH, 8):
            for execution in executions:
                own.run(execution, f"w{number + 1}")
        own.drain()

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(share, first) for first in range(8)]:
            done.result()
    for execution in executions:
        assert_each_ran_once(store, execution)


def test_a_process_that_dies_inside_a_transaction_leaves_nothing_of_it(store: SqliteExecutionStore, path: Path) -> None:
    execution = StoreDriver(store).start(chain(2))
    died = subprocess.run([sys.executable, "-c", DIE_INSIDE, path, execution], check=False)
    assert died.returncode == 7
    assert [(run.node_id, run.status) for run in store.get_node_results(execution)] == [("n1", NodeStatus.RUNNING)]
    assert store.get_events(execution)[-1].kind == "node.started"
    assert store.save_workflow(single()) == 1  # and no lock


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forking beside a thread is the point
def test_children_forked_while_another_thread_writes_and_reads_go_on(store: SqliteExecutionStore) -> None:
    driver = StoreDriver(store)
    executions = [driver.start(single()) for _ in range(5)]
    over, busy = threading.Event(), threading.Event()

    def work() -> None:
        own = StoreDriver(store)
        while not over.is_set():
            own.start("single")
            store.list_executions()
            busy.set()

    with ThreadPoolExecutor(1) as pool:
        worked = pool.submit(work)
        assert busy.wait(10)
        try:
            for execution in executions:
                child = os.fork()
                if child == 0:
                    signal.alarm(20)  # a lock that was inherited would never be given up in here
                    status = 1
                    try:
                        driver.run(execution, "only")
                        store.close()
                        status = 0
                    finally:
                        os._exit(status)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        finally:
            over.set()
        worked.result()
    found = [store.get_execution(execution) for execution in executions]
    assert [one.status for one in found if one] == [ExecutionStatus.COMPLETED] * 5


def test_what_a_forked_child_wrote_outlives_the_parents_closing(store: SqliteExecutionStore) -> None:
    driver = StoreDriver(store)
    execution = driver.start(chain(2))
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        status = 1
        try:
            driver.run(execution, "n1")
            os.write(to_parent, b".")
            os.read(from_parent, 1)
            driver.run(execution, "n2")
            status = 0
        finally:
            os._exit(status)
    os.read(from_child, 1)
    store.close()  # had the child no lock of its own, this would take the write-ahead log away from it
    os.write(to_child, b".")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for end in (from_child, to_parent, from_parent, to_child):
        os.close(end)
    found = store.get_execution(execution)
    assert found is not None
    assert found.status is ExecutionStatus.COMPLETED


def test_a_writer_waits_for_another_processs_transaction(
    store: SqliteExecutionStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.open()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin immediate")
    waiting = threading.Event()

    class Clock:
        monotonic = staticmethod(time.monotonic)

        @staticmethod
        def sleep(seconds: float) -> None:
            waiting.set()
            time.sleep(seconds)

    monkeypatch.setattr(sqlite_connections, "time", Clock)
    with ThreadPoolExecutor(1) as pool:
        saved = pool.submit(store.save_workflow, single())
        assert waiting.wait(10)
        assert not saved.done()
        assert store.get_workflow("single") is None  # readers do not wait
        other.execute("commit")
        assert saved.result(10) == 1
    other.close()


def test_a_lock_that_is_never_given_up_is_told_with_the_path(
    store: SqliteExecutionStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.open()
    monkeypatch.setattr(sqlite_connections, "BUSY_SECONDS", 0.01)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin immediate")
    with pytest.raises(StoreUnavailable, match=r"store\.db.*end or resume that process"):
        store.save_workflow(single())
    other.execute("rollback")
    other.close()
    assert store.save_workflow(single()) == 1


def test_a_full_disk_is_told_and_leaves_nothing(store: SqliteExecutionStore) -> None:
    driver = StoreDriver(store)
    execution = driver.start(chain(2))
    node = driver.claim(execution, "n1")
    with store._writing() as connection:
        pages = connection.exec_driver_sql("pragma page_count").scalar_one()
        connection.exec_driver_sql(f"pragma max_page_count = {pages}")
    with pytest.raises(StoreUnavailable, match="disk is full"):
        driver.record(execution, node, data="x" * 1_000_000)
    assert [run.status for run in store.get_node_results(execution)] == [NodeStatus.RUNNING]
    with store._writing() as connection:
        connection.exec_driver_sql(f"pragma max_page_count = {pages + 10_000}")
    assert driver.record(execution, node, data="x" * 1_000_000).recorded


def test_a_record_that_can_not_be_written_does_not_spoil_those_beside_it(store: SqliteExecutionStore) -> None:
    driver = StoreDriver(store)
    store.save_workflow(single())
    executions = [driver.start("single") for _ in range(3)]
    records = [driver.outcome(execution, driver.claim(execution, "only"), data=1) for execution in executions]
    records[1] = records[1]._replace(data='"\ud800"')
    first, bad, last = store.record(records)
    assert isinstance(bad.error, PayloadRejected)
    assert (first.recorded, bad.recorded, last.recorded) == (True, False, True)
    statuses = [run.status for execution in executions for run in store.get_node_results(execution)]
    assert statuses == [NodeStatus.COMPLETED, NodeStatus.RUNNING, NodeStatus.COMPLETED]


def test_edges_of_a_version_that_was_rolled_back_are_forgotten(store: SqliteExecutionStore) -> None:
    driver = StoreDriver(store)

    class Undo(Exception):
        pass

    with pytest.raises(Undo), store.transaction():
        driver.start(graph("g", {"old": []}))
        raise Undo
    driver.jobs.clear()
    execution = driver.start(graph("g", {"new": []}))
    assert [run.node_id for run in store.get_node_results(execution)] == ["new"]
    assert store.get_execution_count() == 1


def test_a_callers_own_database_error_inside_a_transaction_stays_what_it_is(store: SqliteExecutionStore) -> None:
    own = sqlite3.connect(":memory:")
    with pytest.raises(sqlite3.OperationalError, match="no such table"), store.transaction():
        store.save_workflow(single())
        own.execute("select * from orders")
    own.close()
    assert store.get_workflow("single") is None


def test_a_start_that_is_sent_again_is_answered_and_not_repeated(store: SqliteExecutionStore) -> None:
    store.save_workflow(single())
    wanted = request("single")
    first, again = store.create_executions([wanted, wanted])
    assert (getattr(first, "created", None), getattr(again, "created", None)) == (True, False)
    assert store.get_execution_count() == 1
