"""The supervisor: starts worker processes, replaces those that die or stand still, and stops all of them together.

It imports the standard library only, and not much of it, because it runs as a program of its own beside each worker.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

__all__ = ["GAVE_UP", "PARENT_PIPE", "PLAN", "PULSE", "Supervisor"]

PARENT_PIPE = "SPANLOOM_PARENT_PIPE"  #: a descriptor; each byte is one request to stop, its end that nobody supervises
PULSE = "SPANLOOM_PULSE"  #: a descriptor of a file in memory: the process counts in its first 8 bytes while it moves
READY_AT = 8  #: the byte of that file which is set once the worker works
RETIRES_AT = 9  #: the byte which the worker sets to be replaced, as it has run enough nodes or has grown too large
PULSE_BYTES = 16  #: what follows in that file are the stacks of the process' threads, once DUMP_SIGNAL has come
PLAN = "SPANLOOM_SUPERVISOR_PLAN"  #: the arguments of the Supervisor, as JSON

DUMP_SIGNAL = signal.SIGUSR2  #: has a process that stands still write its threads' stacks
_STABLE_SECONDS = 10.0  #: a process that lived this long restarts at once
_FIRST_SECONDS = (
    15.0  #: how long the others wait for the first one, which reports for all what keeps them from starting
)
_PAUSES = (0.5, 30.0)
_TICK_SECONDS = 0.25
_DUMP_SECONDS = 1.0
_STACK_BYTES = 100_000
_HANDLER_FRAME = f"{os.sep}node{os.sep}caller.py"  #: in the stack of a thread that runs a handler
_END_SECONDS = 10.0  #: how much longer than its grace a process may take to end
GAVE_UP = 75  #: the exit code of a process that is to be replaced: part of it stood still (EX_TEMPFAIL)
_USER_ERROR = 2  #: the exit code of a worker that can't start; a restart would not help
_FAILED_STARTS = 5  #: so many without any that worked, and the supervisor ends
_STOP, _HANG_UP = (signal.SIGTERM, signal.SIGINT), signal.SIGHUP


class _Child:
    """One worker process, and the time of its next start."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.process: subprocess.Popen[bytes] | None = None
        self.started = self.start_at = 0.0
        self.pause = 0.0
        self.still = 0.0  #: for how many seconds it has not moved
        self.doomed_at: float | None = None
        self.retires_by: float | None = None  #: when it must have ended, which was requested to end and be replaced
        self._pipe = -1
        self._page: mmap.mmap | None = None
        self._file = -1
        self._seen = b""

    def start(self, command: Sequence[str], now: float) -> None:
        """Start the process. Raises OSError."""
        read_end, self._pipe = os.pipe()
        try:
            self._file = pulse = _memory_file()
            self._page, self._seen = mmap.mmap(pulse, PULSE_BYTES), b""
            self.process = subprocess.Popen(  # noqa: S603  our own command line
                command,
                pass_fds=(read_end, pulse),
                env={**os.environ, **self.environment, PARENT_PIPE: str(read_end), PULSE: str(pulse)},
                start_new_session=True,  # Ctrl-C is for us alone: a second signal would end the children's grace
            )
        except OSError:
            self.close()
            raise
        finally:
            os.close(read_end)
        self.started, self.still, self.doomed_at, self.retires_by = now, 0.0, None, None

    def close(self) -> None:
        """Forget a process that has ended, or could not start."""
        for descriptor in (self._pipe, self._file):
            if descriptor >= 0:
                os.close(descriptor)
        if self._page is not None:
            self._page.close()
        self.process = self._page = None
        self._pipe = self._file = -1

    @property
    def ready(self) -> bool:
        """Whether it has ever worked."""
        return self._page is not None and self._page[READY_AT] != 0

    @property
    def wants_to_retire(self) -> bool:
        """Whether it is to be replaced by a new process, in its turn."""
        return self._page is not None and self._page[RETIRES_AT] != 0

    def moved(self) -> bool:
        """Return whether it has counted since the last call, or does not count yet."""
        seen, self._seen = self._seen, b"" if self._page is None else self._page[:READY_AT]
        return seen != self._seen or not self.ready

    def stacks(self) -> str:
        """Return the stacks of the threads that ran handlers, as the process wrote them before it was killed."""
        threads = os.pread(self._file, _STACK_BYTES, PULSE_BYTES).decode(errors="replace").split("\n\n")
        return "\n\n".join(thread for thread in threads if _HANDLER_FRAME in thread)

    def stop(self) -> None:
        """Request it to stop; a second time, at once."""
        if self.process is None:
            return
        with suppress(OSError):
            os.write(self._pipe, b"s")
        if not self.ready:  # it may not read the pipe yet
            self.send(signal.SIGTERM)

    def send(self, number: int, *, group: bool = False) -> None:
        """Send a signal, with `group` to the processes that it has started as well."""
        if self.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                (os.killpg if group else os.kill)(self.process.pid, number)


class Supervisor:
    """A supervisor of one or several processes of one command.

    A process that dies is restarted, with growing pauses if it lived for less than 10 seconds. Exit code 2 means that a
    worker can't start: before any process has worked, it ends all of them, with code 2. Five other ends before any has
    worked end them with 1. The processes stop by themselves when their supervisor is gone, also if it was killed.

    A process that does not count for `stall_seconds` (0: for ever) is killed, with the processes that it has started.
    Only seconds in which the supervisor itself runs count, so that no process is killed because the machine or the
    supervisor was stopped; nor is one that a debugger traces.

    A process that wants to retire is stopped with its grace, and replaced at once. They do so one after the other: the
    next one goes on working until the new process works.
    """

    def __init__(
        self,
        command: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        *,
        grace_seconds: float,
        stall_seconds: float,
        burst: bool = False,
        json_log: bool = True,
        all_children: bool = False,
        pauses: Sequence[float] = _PAUSES,
    ) -> None:
        """Start one process for each of `environments`. With `all_children`, adopted orphans are reaped as well.

        `pauses` are the seconds from the first start that failed to the next, and the most.
        """
        self._command = list(command)
        self._children = [_Child(environment) for environment in environments]
        self._grace_seconds = grace_seconds
        self._stall_seconds = stall_seconds
        self._burst = burst
        self._json_log = json_log
        self._all_children = all_children
        self._pauses = pauses
        self._signals: list[int] = []
        self._now = 0.0  # seconds that this process has run; they do not pass while it is stopped
        self._read_at = time.monotonic()
        self._worked = False
        self._failed_starts = 0
        self._retiring: _Child | None = None  # whose turn it is to be replaced, until its new process works
        self._turn_until = 0.0
        self._code: int | None = None

    def run(self) -> int:
        """Supervise until SIGTERM, SIGINT or SIGHUP, or until no process is left, and return the exit code."""
        numbers = [*_STOP, signal.SIGCHLD]
        if signal.getsignal(_HANG_UP) is not signal.SIG_IGN:  # as nohup sets it
            numbers.append(_HANG_UP)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        read_end, write_end = os.pipe()
        for end in (read_end, write_end):
            os.set_blocking(end, False)
        fd_before = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        try:
            while not self._signals and self._code is None and self._children:
                self._start_due()
                self._turn(read_end)
            self._stop(read_end)
        finally:
            signal.set_wakeup_fd(fd_before)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(read_end)
            os.close(write_end)
        return self._code or 0

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._signals.append(number)  # takes no lock: a signal may interrupt any code

    def _turn(self, wakeups: int) -> None:
        """Wait for a moment or a signal, then deal with ended processes and with those that do not move."""
        if select.select([wakeups], [], [], _TICK_SECONDS)[0]:
            with suppress(BlockingIOError):
                os.read(wakeups, 4096)
        read_at, self._read_at = self._read_at, time.monotonic()
        elapsed = min(self._read_at - read_at, 2 * _TICK_SECONDS)
        self._now += elapsed
        self._reap()
        for child in self._children:
            self._worked = self._worked or child.ready
            if self._stall_seconds and child.process is not None:
                self._watch(child, elapsed)
        if not self._signals and self._code is None:
            self._retire()

    def _start_due(self) -> None:
        for number, child in enumerate(self._children):
            waits_for_first = number and not (self._worked or self._failed_starts or self._now > _FIRST_SECONDS)
            if child.process is None and self._now >= child.start_at and not waits_for_first:
                try:
                    child.start(self._command, self._now)
                except OSError as error:
                    self._log("worker_not_started", error=str(error))
                    self._postpone(child)

    def _reap(self) -> None:
        if not self._all_children:
            for child in self._children:
                if child.process is not None and (code := child.process.poll()) is not None:
                    self._ended(child, code)
            return
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self._children:
                if child.process is not None and child.process.pid == pid:
                    child.process.returncode = os.waitstatus_to_exitcode(status)
                    self._ended(child, child.process.returncode)

    def _retire(self) -> None:
        """Replace processes that want to retire, one at a time, the oldest first."""
        one = self._retiring
        if one is not None and one.retires_by is not None:
            if self._now > one.retires_by:
                self._kill(one, "it has not ended")
            return
        if one is not None and not (one.ready or self._now > self._turn_until):
            return
        self._retiring = min(
            (child for child in self._children if child.wants_to_retire), key=lambda child: child.started, default=None
        )
        if self._retiring is not None:
            self._retiring.retires_by = self._now + self._grace_seconds + _END_SECONDS
            self._retiring.stop()

    def _ended(self, child: _Child, code: int) -> None:
        retired = child.retires_by is not None
        child.retires_by = None
        if retired:
            self._turn_until = self._now + _FIRST_SECONDS
        self._worked = self._worked or child.ready
        stalled = child.ready and (child.doomed_at is not None or code == GAVE_UP)  # after it has worked for a while
        child.close()
        if self._signals or self._code is not None:
            return
        if code == 0 and self._burst and not retired:
            self._worked = True
            self._children = [other for other in self._children if other is not child]
            return
        if not self._worked:
            self._failed_starts += 1
            if code == _USER_ERROR:
                self._code = code
                return
            if self._failed_starts >= _FAILED_STARTS:
                self._log("no_worker_starts", exit_code=code, starts=self._failed_starts)
                self._code = 1
                return
        self._postpone(child, at_once=stalled or retired)
        if code != 0:
            self._log("worker_died", exit_code=code, restart_in=round(max(0.0, child.start_at - self._now), 1))

    def _postpone(self, child: _Child, *, at_once: bool = False) -> None:
        stable = at_once or self._now - child.started > _STABLE_SECONDS
        first, most = self._pauses
        child.pause = 0.0 if stable else min(max(2 * child.pause, first), most)
        child.start_at = self._now + child.pause

    def _watch(self, child: _Child, elapsed: float) -> None:
        assert child.process is not None
        reason = f"it has not moved for {child.still:.0f} s"
        if child.doomed_at is not None:
            if self._now >= child.doomed_at:
                self._log("worker_killed", pid=child.process.pid, reason=reason, handlers=child.stacks())
                child.send(signal.SIGKILL, group=True)
            return
        child.still = 0.0 if child.moved() else child.still + elapsed
        if child.still > self._stall_seconds:
            if _is_traced(child.process.pid):
                child.still = 0.0
                return
            child.send(DUMP_SIGNAL)
            child.doomed_at = self._now + _DUMP_SECONDS

    def _stop(self, wakeups: int) -> None:
        """End all processes: within their grace, or at once at a second signal."""
        requests = self._stops()
        for child in self._children:
            if child.retires_by is None:  # a second request would end its grace
                child.stop()
        until = self._now + self._grace_seconds + _END_SECONDS
        while any(child.process is not None for child in self._children):
            self._turn(wakeups)
            if self._stops() > max(requests, 1):
                requests = self._stops()
                until = min(until, self._now + _END_SECONDS)
                for child in self._children:
                    child.stop()
            if self._now > until:
                for child in self._children:
                    self._kill(child, "it has not ended")

    def _kill(self, child: _Child, reason: str) -> None:
        if child.process is not None and child.doomed_at is None:
            self._log("worker_killed", pid=child.process.pid, reason=reason)
            child.doomed_at = self._now
        child.send(signal.SIGKILL, group=True)

    def _stops(self) -> int:
        return sum(number in _STOP for number in self._signals)

    def _log(self, event: str, **fields: Any) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._json_log:
            line = json.dumps({**fields, "event": event, "level": "warning", "timestamp": at})
        else:
            line = " ".join(
                [at, "[warning  ]", event.ljust(30), *(f"{name}={_printable(value)}" for name, value in fields.items())]
            )
        with suppress(OSError):
            os.write(2, f"{line}\n".encode())


def _printable(value: object) -> str:
    """Escape characters that could control a terminal: stacks name the files of users."""
    return "".join(one if one.isprintable() or one == "\n" else repr(one)[1:-1] for one in str(value))


def _memory_file() -> int:
    """Return a descriptor of a new file of PULSE_BYTES zeros that is nowhere but in memory, if the system has such."""
    create: Callable[[str], int] | None = getattr(os, "memfd_create", None)
    if create is not None:
        descriptor = create("spanloom-pulse")
    else:
        import tempfile

        descriptor, path = tempfile.mkstemp(prefix="spanloom-")
        os.unlink(path)
    os.ftruncate(descriptor, PULSE_BYTES)
    return descriptor


def _is_traced(pid: int) -> bool:
    """Return whether a debugger holds the process, as far as the system shows it."""
    try:
        with open(f"/proc/{pid}/status") as status:
            return any(line.startswith("TracerPid:") and line.split()[1] != "0" for line in status)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(Supervisor(**json.loads(os.environ.pop(PLAN)), all_children=True).run())
