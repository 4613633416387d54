"""The epoch: the incarnation of the data in Redis. Each loss starts a new one; the sweep pushes older jobs again."""

from __future__ import annotations

import re
import threading
import time

from redis.exceptions import ResponseError

from spanloom.engine.errors import ConfigurationError, QueueUnavailable
from spanloom.engine.logs import Logger
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.queue.redis_client import check_version
from spanloom.engine.queue.redis_look import RedisLook
from spanloom.engine.queue.redis_refusals import WrongKeyType, bounded_text
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import EpochState

__all__ = ["NO_EPOCH", "Epoch"]

_log = Logger("spanloom.engine")
NO_EPOCH = 0  #: of runs queued while Redis is away: every epoch is later, so the next sweep with Redis pushes them
RECENT_SECONDS = 5.0
PRIVATE_SECONDS = 60  #: how long Redis keeps the mark of a store that lived in one process, after the last check
_MARK = re.compile(rb"([!-~]{1,200}) ([0-9]{1,15})").fullmatch
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_PAUSES = (0.1, 0.1, 0.2, 0.4, 0.0)  #: between reads while other processes raise the epoch; none after the last read


class Epoch:
    """The detector of a Redis that lost its data: the key is missing, or the server's run id has changed."""

    def __init__(self, store: ExecutionStore, queue: NodeQueue) -> None:
        self._store = store
        self._queue = queue
        self._state: EpochState | None = None
        self._checked = float("-inf")
        self._lock = threading.Lock()

    @property
    def number(self) -> int:
        """The epoch as of the last check, NO_EPOCH while Redis is away.

        It is never ahead of the store's, so that an uncertain push is repeated and not lost.
        """
        return NO_EPOCH if self._state is None or self._queue.breaker.is_open else self._state.epoch

    def recent(self) -> int:
        """Return the epoch, checked every few seconds. Raises the errors of check() except QueueUnavailable."""
        if time.monotonic() - self._checked > RECENT_SECONDS:
            try:
                return self.check()
            except QueueUnavailable:
                self._checked = time.monotonic()  # not before every start
        return self.number

    def check(self, look: RedisLook | None = None) -> int:
        """Read Redis' mark, raise the store's epoch if Redis has lost its data, and return the epoch.

        `look` has the answers of Redis of a moment ago, if there are any.
        Raises QueueUnavailable, StoreUnavailable, and ConfigurationError if the namespace in this Redis belongs to
        another store, or if this Redis is too old.
        """
        with self._lock:
            state = self._state or self._store.get_epoch()
            for pause in _PAUSES:
                number, run_id = self._read(state.store_id, look)
                look = None  # not for a second reading
                if number is not None and number > state.epoch:
                    state = self._store.get_epoch()
                # A number below the store's was written late, after another loss, or comes from an old snapshot.
                found = number is not None and number >= state.epoch
                if found and run_id == state.redis_run_id:
                    if not self._store.shared:
                        self._write(state)  # again, as it expires
                    break
                state = self._store.raise_epoch(state.epoch, run_id)
                if state.raised:
                    self._write(state)
                    break
                # Another process raised it, for this loss or an earlier one: its mark will show which.
                time.sleep(pause)
            self._state = state
            self._checked = time.monotonic()
            return state.epoch

    def release(self) -> None:
        """Release the namespace to other stores if this store ends with its process. Raises QueueUnavailable."""
        state = self._state
        if state is None or self._store.shared:
            return
        with self._queue.breaker.guard():
            mark = self._queue.redis.get(self._queue.keys.epoch)
            if mark is not None and mark.startswith(state.store_id.encode()):
                self._queue.redis.delete(self._queue.keys.epoch)

    def _read(self, store_id: str, look: RedisLook | None = None) -> tuple[int | None, str | None]:
        """Return the epoch in Redis, None if it is missing, and the run id of the server."""
        try:
            with self._queue.breaker.guard():
                mark = self._queue.redis.get(self._queue.keys.epoch) if look is None else look.mark()
        except WrongKeyType:
            mark = b""
        with self._queue.breaker.guard():
            run_id = self._run_id(look)
        if mark is None:
            return None, run_id
        found = _MARK(mark)
        owner, number = (found[1].decode(), int(found[2])) if found is not None else ("", None)
        if number is None or (_UUID(store_id) and not _UUID(owner)):
            # The store is the truth: the mark is written anew, and what is open is pushed again.
            _log.warning("epoch_replaced", key=self._queue.keys.epoch, found=bounded_text(mark))
            return None, run_id
        if owner != store_id:
            raise ConfigurationError(
                f"namespace {self._queue.namespace!r} in {self._queue.location} belongs to another store than "
                f"{self._store.url}; use one store for all its engines and workers, or another SPANLOOM_NAMESPACE, "
                f"or, if that store is gone for good, delete the key {self._queue.keys.epoch!r} from Redis"
            )
        return number, run_id

    def _write(self, state: EpochState) -> None:
        lasts = None if self._store.shared else PRIVATE_SECONDS
        with self._queue.breaker.guard():
            self._queue.redis.set(self._queue.keys.epoch, f"{state.store_id} {state.epoch}", ex=lasts)

    def _run_id(self, look: RedisLook | None) -> str | None:
        """Return the server's run id, None if it does not report one. Raises ConfigurationError if it is too old."""
        try:
            server = self._queue.redis.info("server") if look is None else look.server()
        except ResponseError:
            return None  # fakeredis, and some managed services, have no INFO: only the key is checked
        check_version(self._queue.redis, server.get("redis_version"))
        run_id = server.get("run_id")
        return None if run_id is None else str(run_id)
