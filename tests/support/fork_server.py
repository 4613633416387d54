"""A process that has imported everything and forks others from itself, and those as the tests see them.

`python -m support.fork_server MODULE…` imports the modules, reads one JSON line for each process to start, and answers
with its process id. How a process ended is in a file. Each is a process like any other, with an environment, a working
directory, files of its own and an exit code, but without the price of an interpreter; all end with the server.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
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

__all__ = ["Finished", "ForkServer", "ForkedProcess", "run_command", "run_in_terminal"]

MODULE = "support.fork_server"  #: under which name it is run, and found among the processes
_TESTS = Path(__file__).parent.parent
_POLL_SECONDS = 0.005
_COMMAND_SECONDS = 60.0
_COMMANDS = (
    "spanloom.cli.app",
    "spanloom.cli.commands.control",
    "spanloom.cli.exit_codes",
    "spanloom.cli.commands.run",
    "spanloom.cli.commands.worker",
    "spanloom.stores.postgres.store",
    "spanloom.stores.sqlite.store",
)


# ---- in the tests ----


class ForkServer:
    """The process that others are forked from, and a folder for their files."""

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="spanloom-forks-"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE, *modules],
            cwd=_TESTS,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lock = threading.Lock()

    def fork(self, request: Mapping[str, Any]) -> int:
        """Start a process and return its id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())

    def close(self) -> None:
        """End it, and what it started."""
        self._process.communicate("", timeout=30)
        shutil.rmtree(self.folder, ignore_errors=True)


class ForkedProcess:
    """One process, with the parts of subprocess.Popen that tests use. By default it runs a `spanloom` command.

    What it writes goes to the file `log`; without one its stderr is there to be read as text, and its stdout is lost.
    `call` is `module:function`; what that returns for `arguments` is the exit code. With `parent_pipe` it has the
    variable of this name set to a descriptor that ends with the server.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        *,
        log: Path | None = None,
        new_session: bool = False,
        server: ForkServer | None = None,
        call: str | None = None,
        parent_pipe: str | None = None,
    ) -> None:
        server = server or _command_server()
        self.returncode: int | None = None
        self.log_path = log
        place = Path(tempfile.mkdtemp(dir=server.folder))
        self._ended = place / "ended"
        error = log or place / "stderr"
        if log is None:
            os.mkfifo(error)
        self.pid = server.fork(
            _request(arguments, folder, environment, os.devnull if log is None else log, error, self._ended)
            | ({} if call is None else {"call": call, "arguments": [*arguments]})
            | {"new_session": new_session, "parent_pipe": parent_pipe}
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
            time.sleep(_POLL_SECONDS)  # there is no event for the end of another process's child
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and the server has not noted it yet
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Finished(NamedTuple):
    """What became of a command."""

    returncode: int
    stdout: str
    stderr: str


def run_command(arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Finished:
    """Run a `spanloom` command to its end, with no input."""
    server = _command_server()
    place = Path(tempfile.mkdtemp(dir=server.folder))
    out, error, ended = place / "out", place / "err", place / "ended"
    server.fork(_request(arguments, folder, environment, out, error, ended))
    give_up = time.monotonic() + _COMMAND_SECONDS
    while not ended.exists():
        assert time.monotonic() < give_up, f"`spanloom {' '.join(arguments)}` does not end"
        time.sleep(_POLL_SECONDS)
    return Finished(int(ended.read_text()), out.read_text(), error.read_text())


def run_in_terminal(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], *, question: str, answer: str | None
) -> Finished:
    """Run a `spanloom` command to its end in a terminal; `answer` is typed when what is shown ends with `question`.

    Without an answer nobody sits there: its input is empty. What is shown is returned as its stdout.
    """
    server = _command_server()
    ended = Path(tempfile.mkdtemp(dir=server.folder)) / "ended"
    ours, theirs = os.openpty()
    try:
        terminal = os.ttyname(theirs)
        request = _request(arguments, folder, environment, terminal, Path(terminal), ended)
        server.fork(request | {"in": os.devnull if answer is None else terminal})
        give_up = time.monotonic() + _COMMAND_SECONDS
        shown = b""
        while (readable := select.select([ours], [], [], _POLL_SECONDS)[0]) or not ended.exists():
            assert time.monotonic() < give_up, f"`spanloom {' '.join(arguments)}` does not end: {shown.decode()}"
            shown += os.read(ours, 65536) if readable else b""
            if readable and answer is not None and shown.endswith(question.encode()):
                os.write(ours, f"{answer}\n".encode())
    finally:
        os.close(ours)
        os.close(theirs)
    return Finished(int(ended.read_text()), shown.decode(), "")


def _request(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    out: str | Path,
    error: Path,
    ended: Path,
) -> dict[str, Any]:
    return {
        "call": "spanloom.cli.exit_codes:run",
        "arguments": [[*arguments]],
        "argv": ["spanloom", *arguments],
        "cwd": str(folder),
        "env": dict(environment),
        "in": os.devnull,
        "out": str(out),
        "err": str(error),
        "ended": str(ended),
        "new_session": False,
        "parent_pipe": None,
    }


_servers: list[ForkServer] = []


def _command_server() -> ForkServer:
    """The one that commands are forked from, which stays until this process ends."""
    if not _servers:
        _servers.append(ForkServer(_COMMANDS))
        atexit.register(_servers[0].close)
    return _servers[0]


# ---- in the server ----


def _serve(modules: Sequence[str]) -> None:
    for name in modules:
        importlib.import_module(name)
    gc.freeze()  # what is here stays shared with those that are forked
    answers = os.dup(1)
    os.dup2(2, 1)  # what a module prints is no answer
    alive, alive_end = os.pipe()
    ends, woken = os.pipe()  # a pipe, because a signal that comes just before a wait would not end it
    for end in (ends, woken):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the tests
    running: dict[int, str] = {}
    while True:
        ready, _, _ = select.select([sys.stdin, ends], [], [])
        if ends in ready:
            os.read(ends, 4096)
            _reap(running)
        if sys.stdin in ready:
            line = sys.stdin.readline()  # each request awaits its answer: there is one line at most
            if not line:
                break
            request = json.loads(line)
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                for descriptor in (alive_end, ends, woken, answers):
                    os.close(descriptor)
                _become(request, alive)
            running[child] = request["ended"]
            os.write(answers, b"%d\n" % child)
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _reap(running: dict[int, str]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        ended = running.pop(pid)
        with contextlib.suppress(FileNotFoundError):  # the test that started it has ended
            Path(f"{ended}.new").write_text(str(os.waitstatus_to_exitcode(status)))
            os.replace(f"{ended}.new", ended)


def _become(request: Mapping[str, Any], alive: int) -> None:
    """Be the process that is requested, and never return."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if request["new_session"]:
            os.setsid()
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        if request["parent_pipe"] is None:
            os.close(alive)
        else:
            os.environ[request["parent_pipe"]] = str(alive)
        _open_files(request["in"], request["out"], request["err"])
        sys.argv[:] = request["argv"]
        module, _, name = request["call"].partition(":")
        code = getattr(importlib.import_module(module), name)(*request["arguments"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _open_files(source: str, out: str, error: str) -> None:
    new = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, place in ((0, source), (1, out), (2, error)):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY if Path(place).is_fifo() else new
        opened = 1 if number == 2 and place == out else os.open(place, flags, 0o600)
        os.dup2(opened, number)
        if opened > 2:
            os.close(opened)


if __name__ == "__main__":
    _serve(sys.argv[1:])
