"""Handlers of SIGTERM and SIGINT in the process of a worker, but not in those that its node handlers fork."""

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
    """Call `stop` for each signal, on a thread of its own: a handler may interrupt any lock, and takes none itself.

    Python runs handlers in the main thread alone, which waits for work, for seconds; the pipe has the number at once.
    Call it in the main thread.
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
    """Do nothing: the pipe has told of it."""


def _before_fork() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until the child has handlers of its own


def _after_fork_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    if signal.getsignal(signal.SIGTERM) is _on_signal:
        signal.set_wakeup_fd(-1)  # which would stop the parent
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)  # no KeyboardInterrupt: it would be raised here, and dropped
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
