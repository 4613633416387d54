"""The cache of compiled workflows, in the engine and in every worker."""

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
    """The number of definitions to keep (the least recently used leaves first), and for how many seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_size: Annotated[int, Field(ge=1)] = 1000
    ttl_seconds: Annotated[float, Field(gt=0)] = 7200.0


class DefinitionCache:
    """Compiled workflows by (workflow id, version). A version never changes, so no entry is stale. Thread-safe."""

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
        """Return the compiled workflow, loading it if it is not kept. Threads that miss it at once share one load.

        Raises UnknownWorkflow, and the errors of `load` (in every thread that waits for it). Errors are not kept.
        """
        key = (workflow_id, version)
        with self._lock:
            try:
                found = self._kept[key]  # get() would look it up, and ask for the time, twice
            except KeyError:
                self.misses += 1
            else:
                self.hits += 1
                return found
            answer = self._loading.get(key)
            first = answer is None
            if answer is None:
                answer = self._loading[key] = Future()
        if first:
            self._fill(key, answer)
        return answer.result()

    def read_lookups(self) -> tuple[int, int]:
        """Return the numbers of hits and misses."""
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
