"""Signal handlers of a worker's process, which processes that its node handlers fork do not inherit."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from spanloom.worker.process.descriptors import watch_descriptor

__all__ = ["ignore_signals", "install_signal_handlers", "reinstall_signal_handlers"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_HANG_UP = signal.SIGHUP  #: the terminal is gone: it stops a worker as well, but never ends a grace
_forking = threading.local()
_write_end = -1
_heard: tuple[int, ...] = ()


def install_signal_handlers(stop: Callable[[], None], hang_up: Callable[[], None]) -> None:
    """Call `stop` for each SIGTERM and SIGINT, and `hang_up` for each SIGHUP, on a thread of its own.

    SIGHUP stays ignored if it is, as nohup sets it. Call this function in the main thread.

    A Python signal handler runs in the main thread only. It may interrupt any code that holds a lock, and it is delayed
    while that thread waits for work. So the handlers do nothing: the wakeup pipe passes the number on at once.
    """
    global _write_end, _heard  # the handlers of signals belong to the whole process
    read_end, _write_end = os.pipe()
    os.set_blocking(_write_end, False)
    for end in (read_end, _write_end):
        watch_descriptor("the pipe of its signals", end)

    def listen() -> None:
        while number := os.read(read_end, 1):
            if number[0] in _SIGNALS:
                stop()
            elif number[0] == _HANG_UP:
                hang_up()

    threading.Thread(target=listen, name="spanloom-signals", daemon=True).start()
    ignored = signal.getsignal(_HANG_UP) is signal.SIG_IGN
    _heard = _SIGNALS if ignored else (*_SIGNALS, _HANG_UP)
    reinstall_signal_handlers()


def reinstall_signal_handlers() -> None:
    """Install the handlers again: an event loop that was closed in this thread has reset them."""
    signal.set_wakeup_fd(_write_end, warn_on_full_buffer=False)
    for number in _heard:
        signal.signal(number, _on_signal)


def ignore_signals() -> None:
    """Ignore the signals that come from now on. Call it in the main thread."""
    for number in _heard:
        signal.signal(number, signal.SIG_IGN)


def _on_signal(number: int, _frame: FrameType | None) -> None:
    """Do nothing, as the signal's number is in the pipe, unless the wakeup descriptor belongs to an event loop."""
    taken = signal.set_wakeup_fd(_write_end, warn_on_full_buffer=False)
    if taken != _write_end:
        if taken != -1:
            with suppress(ValueError, OSError):
                signal.set_wakeup_fd(taken)
        with suppress(OSError):
            os.write(_write_end, bytes([number]))


def _before_fork() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until the child has set its own handlers


def _after_fork_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    if signal.getsignal(signal.SIGTERM) is _on_signal:
        signal.set_wakeup_fd(-1)  # the parent's pipe, which would stop the parent
        for number in _heard:
            signal.signal(number, signal.SIG_DFL)  # no KeyboardInterrupt: it would be raised here, and dropped
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
