"""Keeps immutable definitions in memory, in the engine and in every worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Annotated

from cachetools import TTLCache
from pydantic import BaseModel, ConfigDict, Field

from spanloom.engine.errors import UnknownWorkflow
from spanloom.engine.workflow.compiled import CompiledWorkflow, plan
from spanloom.engine.workflow.definitions import Workflow

__all__ = ["CacheOptions", "DefinitionCache"]

Key = tuple[str, int]


class CacheOptions(BaseModel):
    """How many definitions to keep (the least recently used leaves first), and for how many seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_size: Annotated[int, Field(ge=1)] = 1000
    ttl_seconds: Annotated[float, Field(gt=0)] = 7200.0


class DefinitionCache:
    """Plans by (workflow id, version). A version never changes, so that nothing here can be stale. Thread-safe."""

    def __init__(
        self,
        options: CacheOptions,
        load: Callable[[str, int], Workflow | None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.hits = 0
        self.misses = 0
        self._load = load
        self._lock = threading.Lock()
        self._kept: TTLCache[Key, CompiledWorkflow] = TTLCache(options.max_size, options.ttl_seconds, timer=clock)
        self._loading: dict[Key, Future[CompiledWorkflow]] = {}

    def get(self, workflow_id: str, version: int) -> CompiledWorkflow:
        """Return the plan, loading it if it is not kept; threads that miss the same one at once share one load.

        Raises UnknownWorkflow, and whatever `load` raises (to all that waited for it); neither is kept.
        """
        key = (workflow_id, version)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self.hits += 1
                return found
            self.misses += 1
            answer = self._loading.get(key)
            first = answer is None
            if answer is None:
                answer = self._loading[key] = Future()
        if first:
            self._fill(key, answer)
        return answer.result()

    def read_lookups(self) -> tuple[int, int]:
        """Return how many look-ups were hits, and how many were misses."""
        return self.hits, self.misses

    def _fill(self, key: Key, answer: Future[CompiledWorkflow]) -> None:
        try:
            made = self._made(*key)
        except BaseException as error:
            with self._lock:
                del self._loading[key]
            answer.set_exception(error)
            return
        with self._lock:
            self._kept[key] = made
            del self._loading[key]
        answer.set_result(made)

    def _made(self, workflow_id: str, version: int) -> CompiledWorkflow:
        workflow = self._load(workflow_id, version)
        if workflow is None:
            raise UnknownWorkflow(workflow_id, version)
        return plan(workflow)
