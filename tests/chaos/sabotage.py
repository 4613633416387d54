"""The sabotage: handlers that break the process they run in, each once, at the order of a fault."""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path
from typing import ClassVar

from chaos.deeds import ORDERS
from chaos.environment import Environment
from chaos.fault import Fault
from spanloom.engine import StoreUnavailable

__all__ = ["SABOTAGE", "Sabotage"]

STALL_SECONDS = 4.0
_TAKEN_SECONDS = 5.0
_LOOK_SECONDS = 0.02


class Sabotage(Fault):
    """Have a handler break its process, which its supervisor replaces."""

    every = (6.0, 9.0)  # rarely: a worker that was struck is away for so long
    together = False  # its workers have supervisors; the other faults kill workers themselves
    stall_seconds = STALL_SECONDS
    expected_errors = frozenset({"worker_gives_up"})
    _numbers: ClassVar = itertools.count()

    def inject(self, environment: Environment, chance: random.Random) -> None:
        at = time.time()
        order = Path(environment.variables[ORDERS]) / f"{self.name}.{next(self._numbers)}"
        order.touch()
        until = time.monotonic() + _TAKEN_SECONDS
        while order.exists() and time.monotonic() < until and not environment.over.is_set():
            time.sleep(_LOOK_SECONDS)
        taken = [path for path in order.parent.iterdir() if path.name.startswith(f"{order.name}.by.")]
        order.unlink(missing_ok=True)
        if taken:
            worker = _worker_of(environment, int(taken[0].name.rpartition(".")[2]))
            environment.record(self.name, at, at + STALL_SECONDS + environment.lease_seconds, worker=worker)

    def explains(self, environment: Environment) -> int:
        return environment.claims


class HoldInterpreter(Sabotage):
    """A call of C that holds the interpreter for ever."""

    name = "hold-interpreter"


class DeadlockSlots(Sabotage):
    """A lock that nobody opens; the node has a timeout."""

    name = "deadlock-slots"


class CloseDescriptors(Sabotage):
    """All descriptors of the process but the standard streams are closed."""

    name = "close-descriptors"
    expected_errors = Sabotage.expected_errors | {
        *("slot_failed", "node_not_recorded", "result_not_recorded", "heartbeat_failed", "jobs_dropped"),
        *("lease_not_renewed", "sweep_failed", "claims_not_seen", "lines_not_stored", "claim_given_up"),
    }


class UseUpDescriptors(Sabotage):
    """No descriptor is left to be opened."""

    name = "use-up-descriptors"
    expected_errors = CloseDescriptors.expected_errors


SABOTAGE: tuple[type[Sabotage], ...] = (HoldInterpreter, DeadlockSlots, CloseDescriptors, UseUpDescriptors)


def _worker_of(environment: Environment, pid: int) -> str | None:
    try:
        return next((lease.name for lease in environment.engine.store.list_workers() if lease.pid == pid), None)
    except StoreUnavailable:
        return None
