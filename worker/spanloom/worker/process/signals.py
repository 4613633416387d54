"""Handlers of SIGTERM and SIGINT in the process of a worker, but not in processes that its node handlers fork."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

__all__ = ["ignore_signals", "install_signal_handlers"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_forking = threading.local()


def install_signal_handlers(stop: Callable[[], None]) -> None:
    """Call `stop` for each signal, on a thread of its own. Call this function in the main thread.

    A Python signal handler runs in the main thread only. It may interrupt any code that holds a lock, and it is delayed
    while that thread waits for work. So the handlers do nothing: the wakeup pipe passes the number on at once.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)

    def listen() -> None:
        while number := os.read(read_end, 1):
            if number[0] in _SIGNALS:
                stop()

    threading.Thread(target=listen, name="spanloom-signals", daemon=True).start()
    signal.set_wakeup_fd(write_end)
    for number in _SIGNALS:
        signal.signal(number, _on_signal)


def ignore_signals() -> None:
    """Ignore the signals that come from now on. Call it in the main thread."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _on_signal(_signal: int, _frame: FrameType | None) -> None:
    """Do nothing: the signal's number is in the pipe."""


def _before_fork() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until the child has set its own handlers


def _after_fork_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    if signal.getsignal(signal.SIGTERM) is _on_signal:
        signal.set_wakeup_fd(-1)  # the parent's pipe, which would stop the parent
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)  # no KeyboardInterrupt: it would be raised here, and dropped
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
