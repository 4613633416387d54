"""The recycling of a worker process: it ends after so many nodes, or once it is too large, and another one goes on."""

from __future__ import annotations

import math
import os
import random
import resource
import sys
import threading
import time
from collections.abc import Callable

import structlog

from spanloom.engine.errors import ConfigurationError
from spanloom.engine.telemetry.instruments import instruments
from spanloom.engine.wording import size_text
from spanloom.worker.options import WorkerOptions

__all__ = ["Recycling", "private_bytes"]

_log = structlog.get_logger("spanloom.worker")
_LOOK_SECONDS = 0.25  #: between two measurements of memory
_STATM = "/proc/self/statm"


class Recycling:
    """The number of nodes that a worker has run, and the request for its replacement, which is made once.

    Processes that started together do not end together: each draws a number from the last tenth up to `max_nodes`.
    Memory is that which the process shares with no other, where the system shows it. It is measured after nodes.
    """

    def __init__(self, options: WorkerOptions, name: str, begin: Callable[[], object]) -> None:
        """`begin` is called on the thread of a slot; it returns at once."""
        self.ran = 0  #: roughly: slots that add at the same moment may lose a few
        self._name = name
        self._begin = begin
        self._options = options
        most, self._most_bytes = options.max_nodes, options.max_memory
        self._most: float = math.inf if most is None else random.randint(most - most // 10, most)  # noqa: S311  no secret
        self._look_at = math.inf if self._most_bytes is None else 0.0
        self._once = threading.Lock()

    def check_start(self) -> None:
        """Raise ConfigurationError if this process is too large before it has run any node."""
        if self._most_bytes is not None and (used := private_bytes()) >= self._most_bytes:
            raise ConfigurationError(
                f"--max-memory {size_text(self._most_bytes)} is less than the {size_text(used)} that this process "
                f"takes before it has run a node; give more"
            )

    def count(self, nodes: int) -> None:
        """Count nodes that have ended; request the replacement if that is enough of them, or too much memory."""
        self.ran += nodes
        if self.ran >= self._most:
            self._request(f"it has run {self.ran:,} nodes, of --max-nodes {self._options.max_nodes:,}")
        elif self._look_at != math.inf and (now := time.monotonic()) >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            if self._most_bytes is not None and (used := private_bytes()) > self._most_bytes:
                self._request(f"it takes {size_text(used)}, more than --max-memory {size_text(self._most_bytes)}")

    def _request(self, reason: str) -> None:
        if not self._once.acquire(blocking=False):  # for good
            return
        self._most = self._look_at = math.inf
        _log.info("worker_recycles", worker=self._name, reason=reason)
        if (measured := instruments()) is not None:
            measured.worker_recycled()
        self._begin()


def private_bytes() -> int:
    """Return the memory of this process that is in no file and that it shares with none; the peak if not on Linux."""
    try:
        with open(_STATM, "rb") as file:
            _, resident, shared, *_ = map(int, file.read().split())
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
