"""A definition is loaded once, kept for as long as the options say, and never handed out half made."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import ValidationError

from spanloom.engine.errors import StoreUnavailable, UnknownWorkflow
from spanloom.engine.workflow.cache import CacheOptions, DefinitionCache
from spanloom.engine.workflow.definitions import Node, Workflow


class Loader:
    """A store's get_workflow that counts its calls."""

    def __init__(self, during: Callable[[], Any] = lambda: None) -> None:
        self.calls: list[tuple[str, int]] = []
        self._during = during

    def __call__(self, workflow_id: str, version: int) -> Workflow | None:
        self.calls.append((workflow_id, version))
        self._during()
        return None if version > 9 else Workflow(id=workflow_id, nodes=[Node(id=f"v{version}", type="t")])


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_version_is_loaded_once() -> None:
    load = Loader()
    cache = DefinitionCache(CacheOptions(), load)

    first = cache.get("w", 1)

    assert first.nodes.keys() == {"v1"}
    assert cache.get("w", 1) is first
    assert cache.get("w", 2).nodes.keys() == {"v2"}
    assert load.calls == [("w", 1), ("w", 2)]
    assert (cache.hits, cache.misses) == (1, 2)


def test_the_least_recently_used_leaves_first() -> None:
    load = Loader()
    cache = DefinitionCache(CacheOptions(max_size=2), load)
    for version in (1, 2, 1, 3, 1, 2):
        cache.get("w", version)
    assert [version for _, version in load.calls] == [1, 2, 3, 2]


def test_what_is_kept_too_long_is_loaded_again() -> None:
    load, clock = Loader(), Clock()
    cache = DefinitionCache(CacheOptions(ttl_seconds=10), load, clock=clock)
    cache.get("w", 1)
    clock.now = 9.9
    cache.get("w", 1)
    assert len(load.calls) == 1
    clock.now = 10.1
    cache.get("w", 1)
    assert len(load.calls) == 2


def test_an_unknown_version_is_refused_and_asked_for_again() -> None:
    load = Loader()
    cache = DefinitionCache(CacheOptions(), load)
    for _ in range(2):
        with pytest.raises(UnknownWorkflow) as caught:
            cache.get("w", 10)
        assert (caught.value.workflow_id, caught.value.version) == ("w", 10)
    assert len(load.calls) == 2


def give_way_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0)


def test_threads_that_miss_the_same_version_share_one_load() -> None:
    go_on = threading.Event()
    load = Loader(lambda: go_on.wait(10))
    cache = DefinitionCache(CacheOptions(), load)

    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(cache.get, "w", 1) for _ in range(8)]
        give_way_until(lambda: cache.misses == 8)
        go_on.set()
        plans = [one.result(10) for one in waiting]

    assert load.calls == [("w", 1)]
    assert all(plan is plans[0] for plan in plans)
    assert cache.hits == 0


def test_a_slow_load_does_not_hold_up_others() -> None:
    entered, go_on = threading.Event(), threading.Event()

    def load(workflow_id: str, version: int) -> Workflow:
        if workflow_id == "slow":
            entered.set()
            assert go_on.wait(10)
        return Workflow(id=workflow_id, nodes=[Node(id="a", type="t")])

    cache = DefinitionCache(CacheOptions(), load)
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(cache.get, "slow", 1)
        assert entered.wait(10)
        assert cache.get("quick", 1).workflow.id == "quick"
        go_on.set()
        assert slow.result(10).workflow.id == "slow"


def test_a_failed_load_reaches_all_that_waited_and_is_tried_again() -> None:
    go_on = threading.Event()

    def during() -> None:
        if not go_on.is_set():
            go_on.wait(10)
            raise StoreUnavailable("no answer")

    load = Loader(during)
    cache = DefinitionCache(CacheOptions(), load)
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(cache.get, "w", 1) for _ in range(2)]
        give_way_until(lambda: cache.misses == 2)
        go_on.set()
        for one in both:
            with pytest.raises(StoreUnavailable):
                one.result(10)
    assert cache.get("w", 1).nodes.keys() == {"v1"}
    assert len(load.calls) == 2


@pytest.mark.parametrize("wrong", [{"max_size": 0}, {"ttl_seconds": 0}, {"size": 1}], ids=str)
def test_options_that_keep_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CacheOptions(**wrong)
