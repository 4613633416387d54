"""Metrics of the calls of a store and of a queue: their methods are wrapped once a MeterProvider is set up."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.telemetry.instruments import instruments

__all__ = ["instrument", "instrument_calls"]

# Opening and closing do not compare with other calls; a transaction lasts as long as its block.
_LEFT_OUT = frozenset({"open", "close", "migrate", "transaction"})
_OPERATIONS = tuple(
    name
    for name in sorted(ExecutionStore.__abstractmethods__ - _LEFT_OUT)
    if not isinstance(inspect.getattr_static(ExecutionStore, name), property)
)

Record = Callable[[str, float, BaseException | None], None]


def instrument(store: ExecutionStore, queue: NodeQueue) -> None:
    """Time the port's methods on this store, and the queue's, if a MeterProvider is set up. A second call does nothing.

    The methods are wrapped on the objects themselves, so that every holder of them is measured.
    """
    if instruments() is None:
        return
    _instrument_store(store)
    instrument_calls(
        queue, {"push": "push", "look": "look", "heads": "heads", "ping": "ping", "check_for_worker": "ping"}
    )


def _instrument_store(store: ExecutionStore) -> None:
    scheme = store.url.partition(":")[0]
    database = "postgresql" if scheme == "postgres" else scheme

    def record(operation: str, seconds: float, error: BaseException | None) -> None:
        if (found := instruments()) is not None:
            found.store_called(database, operation, seconds, error)

    _instrument(store, {name: name for name in _OPERATIONS}, record)


def instrument_calls(owner: Any, operations: Iterable[str] | Mapping[str, str]) -> None:
    """Time methods that call Redis; a mapping gives their operations' names. A second call does nothing."""

    def record(operation: str, seconds: float, error: BaseException | None) -> None:
        if (found := instruments()) is not None:
            found.queue_called(operation, seconds, error)

    named = operations if isinstance(operations, Mapping) else {name: name for name in operations}
    _instrument(owner, named, record)


def _instrument(owner: Any, operations: Mapping[str, str], record: Record) -> None:
    if instruments() is None or not hasattr(owner, "__dict__"):
        return
    for name, operation in operations.items():
        if name not in vars(owner):
            setattr(owner, name, _timed(getattr(owner, name), operation, record))


def _timed(call: Callable[..., Any], operation: str, record: Record) -> Callable[..., Any]:
    @functools.wraps(call)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        failed: BaseException | None = None
        try:
            return call(*args, **kwargs)
        except BaseException as error:
            failed = error
            raise
        finally:
            record(operation, time.perf_counter() - began, failed)

    return timed
