"""One handler process as its worker sees it: started, sent to, received from and killed, and never waited for alone."""

from __future__ import annotations

import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from spanloom.engine.errors import HandlerDied
from spanloom.worker.isolated.frames import CHUNK, FrameBuffer, MalformedFrame, frame_of
from spanloom.worker.isolated.messages import Ended, Failed, Line, Ready, SpanEnded, Start, Unable

__all__ = ["HandlerProcess", "interpreter"]

_END_SECONDS = 5.0
_EXIT_SECONDS = 1.0  #: between the end of the connection and that of the process
_MANY_LINES = 1_000
_BESIDE_DATA = 16 << 20  #: bytes that a message may take beside the data of a node
_MESSAGES = Line | SpanEnded | Ended | Failed


class HandlerProcess:
    """One process, and the connection to it.

    Its methods wait in short steps. Between them they call `check`, which returns the seconds of the next step and
    raises to end the wait, and they see the death of the process even if a copy of it keeps the connection open.
    """

    def __init__(self, start: Start, spawner: ThreadPoolExecutor, payload_limit: int) -> None:
        self._target = start.target
        self._start: Start | None = start
        ours, theirs = socket.socketpair()
        with theirs:
            command = [*interpreter(), "-m", "spanloom.worker.isolated.child", str(theirs.fileno())]
            passed = (theirs.fileno(),)
            # On a thread that lives as long as the pool: Linux ends the process with the thread that has started it.
            try:
                self._process = spawner.submit(subprocess.Popen, command, pass_fds=passed).result()
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        self._socket = ours
        self._events = select.poll()
        self._events.register(ours, select.POLLIN)
        self._buffer = FrameBuffer(4 * payload_limit + _BESIDE_DATA)
        self.calls = 0

    def await_ready(self, seconds: float, check: Callable[[], float]) -> None:
        """Wait until it has imported the engine and entered its lifespan. Raises HandlerDied, or as `check` does."""
        until = time.monotonic() + seconds

        def check_start() -> float:
            left = until - time.monotonic()
            if left <= 0:
                self.kill()
                raise HandlerDied(-signal.SIGKILL, f"{self._unable}: it did not start within {seconds:g} s")
            return min(left, check())

        start, self._start = self._start, None
        self.send(start, check_start)
        answer = self._next(check_start)
        if isinstance(answer, Unable):
            self.kill()
            raise HandlerDied(1, f"{self._unable}: {answer.reason}")
        if not isinstance(answer, Ready):
            self._break_off(f"it sent {type(answer).__name__} before it was ready")

    def is_usable(self) -> bool:
        """Return whether it can take a call; take away the lines that the last call has left behind."""
        try:
            for _ in range(_MANY_LINES):
                message = self._buffer.take() or self._read()
                if message is None:
                    return self._process.poll() is None
                if not isinstance(message, Line | SpanEnded | bytes):
                    return False
        except (HandlerDied, MalformedFrame):
            return False
        return True  # more are coming, which receive() drops

    def receive(self, number: int, check: Callable[[], float]) -> Any:
        """Return the next message of a call; those that another call left behind are dropped.

        Raises HandlerDied, also if it answers another call, and as `check` does.
        """
        while True:
            message = self._next(check)
            if not isinstance(message, _MESSAGES):
                self._break_off(f"it sent {type(message).__name__} for an answer")
            if message.number == number:
                return message
            if isinstance(message, Ended | Failed):
                self._break_off("it answered another call than the one that it was sent")
            check()

    def send(self, message: object, check: Callable[[], float]) -> None:
        """Send a message. Raises HandlerDied, or as `check` does."""
        left = memoryview(frame_of(message))
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                self._events.modify(self._socket, select.POLLOUT)
                try:
                    self._wait(check)
                finally:
                    self._events.modify(self._socket, select.POLLIN)
                if self._process.poll() is not None:
                    self._died()
            except OSError:
                self._died()

    def kill(self) -> None:
        """End it now, whatever it does."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let it leave its lifespan and end."""
        self._socket.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    @property
    def _unable(self) -> str:
        return f"a handler process can't run {self._target}"

    def _next(self, check: Callable[[], float]) -> Any:
        dead = False
        while True:
            try:
                message = self._buffer.take()
            except MalformedFrame as error:
                self._break_off(str(error))
            if message is not None:
                return message
            if self._read() is None:
                if dead:
                    self._died()
                self._wait(check)
                dead = self._process.poll() is not None  # then once more: it may have answered before

    def _read(self) -> bytes | None:
        """Take the bytes that have come; None if there are none. Raises HandlerDied at the end of the connection."""
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            self._died()
        self._buffer.feed(data)
        return data

    def _wait(self, check: Callable[[], float]) -> None:
        self._events.poll(1000 * check())

    def _died(self) -> NoReturn:
        """Raise HandlerDied with its exit code; a process that has only closed its connection is killed."""
        try:
            code = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._break_off("it closed it")
        raise HandlerDied(code) from None

    def _break_off(self, reason: str) -> NoReturn:
        self.kill()
        text = f"the process that ran the handler was killed, for it broke its connection to the worker: {reason}"
        raise HandlerDied(-signal.SIGKILL, text)


def interpreter() -> list[str]:
    """Return this interpreter with its own options. With -P, no module of the working directory hides Python's own."""
    options: Callable[[], list[str]] = subprocess._args_from_interpreter_flags  # type: ignore[attr-defined]  # pyright: ignore  as multiprocessing does
    flags = options()
    if "-X" in flags:  # the last ones, and not all of them
        flags = flags[: flags.index("-X")]
    more = [f"-X{name}" if value is True else f"-X{name}={value}" for name, value in sys._xoptions.items()]  # pyright: ignore[reportPrivateUsage]  documented
    return [sys.executable, *(flag for flag in flags if flag != "-P"), *more, "-P"]
