"""The in-memory store: to whom it belongs and how long it lives."""

from __future__ import annotations

import gc
import os
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from spanloom.engine.errors import ConfigurationError
from spanloom.engine.store.states import ExecutionStatus
from spanloom.stores import InMemoryExecutionStore
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import fan, single


def test_a_forked_child_is_refused() -> None:
    store = InMemoryExecutionStore()
    store.save_workflow(single())
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            store.list_workflows()
        except ConfigurationError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    said = os.read(reader, 10_000).decode()
    os.close(reader)
    assert f"belongs to process {os.getpid()} and can't be used by process {child}" in said
    assert [found.id for found in store.list_workflows().items] == ["single"]


def test_it_can_not_be_sent_to_another_process() -> None:
    with pytest.raises(ConfigurationError, match="can't be sent to another process"):
        pickle.dumps(InMemoryExecutionStore())


def test_its_threads_share_it() -> None:
    store = InMemoryExecutionStore()
    driver = StoreDriver(store)
    executions = [driver.start(fan(20)) for _ in range(10)]
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(driver.drain) for _ in range(8)]:
            done.result()
    found = [store.get_execution(execution) for execution in executions]
    assert [one.status for one in found if one] == [ExecutionStatus.COMPLETED] * 10


def test_two_stores_are_apart() -> None:
    one, other = InMemoryExecutionStore(), InMemoryExecutionStore.from_url("memory://")
    one.save_workflow(single())
    assert other.get_workflow("single") is None
    assert one.get_epoch().store_id != other.get_epoch().store_id
    assert not one.shared


def test_closing_keeps_what_it_holds() -> None:
    store = InMemoryExecutionStore()
    store.save_workflow(single())
    store.close()
    assert store.get_workflow("single") == single()


def test_it_is_gone_with_its_object() -> None:
    store = InMemoryExecutionStore()
    connections = weakref.ref(store._live())
    del store
    gc.collect()
    assert connections() is None


@pytest.mark.parametrize("url", ["memory:///", "memory://name", "memory://?shared=1"])
def test_a_url_with_more_than_the_scheme_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="write memory://"):
        InMemoryExecutionStore.from_url(url)
