"""What handlers do to their processes at the order of a fault."""

from __future__ import annotations

import os
import re
import resource
import threading
from collections.abc import Callable
from contextlib import suppress

__all__ = ["ORDERS", "carry_out"]

ORDERS = "CHAOS_ORDERS"  #: the variable that names the folder of the orders


def carry_out() -> None:
    """Carry out an order, if one waits: of several handlers one gets it."""
    folder = os.environ.get(ORDERS)
    try:
        names = os.listdir(folder) if folder else ()
    except OSError:
        return  # the descriptors are used up: no handler of this load needs one
    for name in names:
        if ".by." not in name:
            try:
                os.rename(f"{folder}/{name}", f"{folder}/{name}.by.{os.getpid()}")
            except OSError:
                continue  # another one was first
            _DEEDS[name.partition(".")[0]]()


def _hold() -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")


def _deadlock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def _close() -> None:
    """Close all but the trace log, which is the handlers' own."""
    kept = os.stat(os.environ["CHAOS_TRACE_LOG"])
    for number in range(3, 256):
        with suppress(OSError):
            if not os.path.samestat(os.fstat(number), kept):
                os.close(number)


def _use_up() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, most), most))
    try:
        while True:
            os.open(os.devnull, os.O_RDONLY)
    except OSError:
        pass


_DEEDS: dict[str, Callable[[], None]] = {
    "hold-interpreter": _hold,
    "deadlock-slots": _deadlock,
    "close-descriptors": _close,
    "use-up-descriptors": _use_up,
}
