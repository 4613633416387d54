"""The handler process's end of the connection to its worker, which no forked copy of the process may use."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from spanloom.worker.isolated.frames import CHUNK, FrameBuffer, frame_of

__all__ = ["WorkerLink"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  #: of a whole group or service: for the worker


class WorkerLink:
    """The connection of this process to its worker, and the signals that are the worker's to act on.

    A copy that a handler forks has neither: there the connection is closed, the signals end it, its lines are dropped,
    and it ends where it would answer.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)  # programs that handlers start would keep it open
        self._socket = socket.socket(fileno=descriptor)
        self._buffer = FrameBuffer()
        self._sending = threading.Lock()
        self._pid = os.getpid()
        for number in _SIGNALS:
            signal.signal(number, _leave_to_the_worker)  # not ignored, which programs that handlers start would inherit
        os.register_at_fork(after_in_child=self._let_go)

    @property
    def forked(self) -> bool:
        """Whether this is a forked copy of the process that the worker has started."""
        return os.getpid() != self._pid

    def receive(self) -> Any:
        """Return the next message. Raises EOFError or OSError when the worker has closed the connection."""
        while (message := self._buffer.take()) is None:
            data = self._socket.recv(CHUNK)
            if not data:
                raise EOFError
            self._buffer.feed(data)
        return message

    def send(self, message: object) -> None:
        """Send a message; a forked copy sends none."""
        if self.forked:
            return
        frame = frame_of(message)
        with self._sending:
            self._socket.sendall(frame)

    def leave_fork(self, error: BaseException | None = None) -> None:
        """End a forked copy that its handler did not end, with the code of SystemExit; return in any other process."""
        if self.forked:
            _leave(error)

    def _let_go(self) -> None:
        with suppress(OSError):
            self._socket.close()
        for number in _SIGNALS:
            if signal.getsignal(number) is _leave_to_the_worker:
                signal.signal(number, signal.SIG_DFL)


def _leave(error: BaseException | None) -> NoReturn:
    code = error.code if isinstance(error, SystemExit) else 1
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _leave_to_the_worker(_signal: int, _frame: FrameType | None) -> None:
    """Do nothing: the worker ends this process when its grace is over."""
