"""Processes that run the `spanloom` command, without the price of an interpreter for each: all forked from one.

They are processes like any other, with a command line, a folder, an environment and an exit code. Run as a program this
is the one they are forked from: it reads what is wanted a line, answers with the new process's id, and writes what
became of it to a file.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

__all__ = ["Done", "ForkedProcess", "run_command"]

_LOOK_SECONDS = 0.005


class Done(NamedTuple):
    """What became of a command."""

    returncode: int
    stdout: str
    stderr: str


class ForkedProcess:
    """A `spanloom` command that runs, with the parts of subprocess.Popen that tests use.

    What it writes goes to the file `log`; without one its stderr is there to be read as text, and its stdout is lost.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        *,
        log: Path | None = None,
        new_session: bool = False,
    ) -> None:
        self.returncode: int | None = None
        self._place = Path(tempfile.mkdtemp(dir=_source().folder))
        self._ended = self._place / "ended"
        error = log or self._place / "stderr"
        if log is None:
            os.mkfifo(error)
        self.pid = _source().fork(
            {
                "argv": ["spanloom", *arguments],
                "cwd": str(folder),
                "env": dict(environment),
                "out": os.devnull if log is None else str(log),
                "err": str(error),
                "ended": str(self._ended),
                "new_session": new_session,
            }
        )
        self.stderr: TextIO | None = (
            error.open() if log is None else None
        )  # a pipe, once the process has opened its end

    def poll(self) -> int | None:
        """Return the exit code, or minus the signal that ended it; None while it runs."""
        if self.returncode is None:
            with contextlib.suppress(FileNotFoundError):
                self.returncode = int(self._ended.read_text())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        give_up = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if give_up is not None and time.monotonic() > give_up:
                raise subprocess.TimeoutExpired("spanloom", timeout or 0.0)
            time.sleep(_LOOK_SECONDS)  # nothing tells of the end of another process's child
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and nobody was told yet
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def run_command(arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Done:
    """Run a command to its end, with no input."""
    place = Path(tempfile.mkdtemp(dir=_source().folder))
    out, err, ended = place / "out", place / "err", place / "ended"
    _source().fork(
        {
            "argv": ["spanloom", *arguments],
            "cwd": str(folder),
            "env": dict(environment),
            "out": str(out),
            "err": str(err),
            "ended": str(ended),
            "new_session": False,
        }
    )
    give_up = time.monotonic() + 60
    while not ended.exists():
        assert time.monotonic() < give_up, f"`spanloom {' '.join(arguments)}` does not end"
        time.sleep(_LOOK_SECONDS)
    return Done(int(ended.read_text()), out.read_text(), err.read_text())


class _Source:
    """The process that they are forked from."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="spanloom-forks-")
        command = [sys.executable, str(Path(__file__))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._asking = threading.Lock()
        atexit.register(self.close)

    def fork(self, asked: Mapping[str, Any]) -> int:
        """Start a process and return its id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._asking:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.communicate("", timeout=30)
        shutil.rmtree(self.folder, ignore_errors=True)


_sources: list[_Source] = []


def _source() -> _Source:
    if not _sources:
        _sources.append(_Source())
    return _sources[0]


# ---- in the process that they are forked from ----

_running: dict[int, str] = {}


def _serve() -> None:
    import spanloom.cli.commands
    import spanloom.cli.control
    import spanloom.cli.start
    import spanloom.cli.worker
    import spanloom.stores.postgres
    import spanloom.stores.sqlite  # noqa: F401

    ends, told = os.pipe()  # a pipe, because a signal that comes just before a wait would not end it
    for end in (ends, told):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the tests
    while True:
        ready, _, _ = select.select([sys.stdin, ends], [], [])
        if ends in ready:
            os.read(ends, 4096)
            _reap()
        if sys.stdin in ready:
            line = sys.stdin.readline()  # who asks awaits the answer: there is one line at most
            if not line:
                return
            asked = json.loads(line)
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                os.close(ends)
                os.close(told)
                _become(asked)
            _running[child] = asked["ended"]
            print(child, flush=True)


def _reap() -> None:
    while _running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        ended = _running.pop(pid)
        Path(f"{ended}.new").write_text(str(os.waitstatus_to_exitcode(status)))
        os.replace(f"{ended}.new", ended)


def _become(asked: Mapping[str, Any]) -> None:
    code = 1
    try:
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if asked["new_session"]:
            os.setsid()
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["env"])
        for number, place in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY if number == 2 and _is_pipe(place) else _NEW
            opened = 1 if number == 2 and place == asked["out"] else os.open(place, flags, 0o600)
            os.dup2(opened, number)
            if opened > 2:
                os.close(opened)
        sys.argv[:] = asked["argv"]
        from spanloom.cli.failures import run

        code = run(sys.argv[1:])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def _is_pipe(place: str) -> bool:
    return Path(place).is_fifo()


if __name__ == "__main__":
    _serve()
