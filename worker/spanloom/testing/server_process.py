"""One server process for tests and demos: started, awaited, stopped, killed, and gone when its starter is gone."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

from spanloom.engine.errors import ConfigurationError

__all__ = ["ServerProcess"]

# The watcher reads the server's pid, then blocks. A line means that the server was stopped in good order; end of file
# means that its starter died, by whatever signal. Then the watcher ends the server and removes its files.
_WATCHER = """
read -r pid || exit 0
read -r stopped && exit 0
kill -s "$1" "$pid" 2>/dev/null
sleep 2
kill -s KILL "$pid" 2>/dev/null
rm -rf "$2"
"""


class ServerProcess(ABC):
    """One server, as a context manager that starts and stops it.

    The server runs in a session of its own (Ctrl-C reaches the starter only) and ends within two seconds of its
    starter's death, also by SIGKILL. Sockets, the log and temporary data are in one short directory that `close` (the
    end of the `with` block) removes; data in a directory of the caller's stays.
    """

    start_seconds = 30.0  #: the longest time that `start` waits for an answer of the server
    stop_signal: signal.Signals = signal.SIGTERM
    orphan_signal: signal.Signals = signal.SIGTERM  #: the signal of the watcher when the starter has died

    def __init__(self, name: str) -> None:
        # Not TMPDIR: socket paths are limited to about 100 bytes, and a server that drops root must get there.
        base = "/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()
        self.name = name
        self.home = Path(base, f"spanloom-{secrets.token_hex(4)}")
        self.log_path = self.home / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL for clients, the same after each restart."""

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the command line. Called for every start, it may prepare the data directory."""

    @abstractmethod
    def _answers(self) -> str | None:
        """Connect once. Return None if the server answers, else the reason why not."""

    def _identity(self) -> tuple[int, int] | None:
        """Return the user and group of the server. None: those of this process."""
        return None

    @property
    def pid(self) -> int:
        """The server's process id. Raises ConfigurationError while it does not run."""
        if self._process is None:
            raise ConfigurationError(f"{self.name} is not running; call start() first")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the server process is running."""
        return self._process is not None and self._process.poll() is None

    @property
    def pids(self) -> set[int]:
        """The processes that this server consists of now: itself and its watcher."""
        return {process.pid for process in (self._process, self._watcher) if process is not None}

    def start(self) -> Self:
        """Start the server and wait until it answers. Idempotent.

        Raises ConfigurationError, with the tail of the server's log, if it ends or does not answer in time.
        """
        if self.running:
            return self
        if self._process is not None:
            self._reap()  # it ended by itself
        self.home.mkdir(mode=0o700, exist_ok=True)
        deadline = time.monotonic() + self.start_seconds
        self._launch()
        while (why := self._answers()) is not None:
            if not self.running:
                self._reap()
                tail = self._log_tail()
                if "pre-existing shared memory block" not in tail or time.monotonic() > deadline:
                    raise ConfigurationError(f"{self.name} ended while it started; its log says:\n{tail}")
                self._launch()  # the children of a killed Postgres are still on their way out
            elif time.monotonic() > deadline:
                self.kill()
                late = f"{self.name} does not answer after {self.start_seconds:g} s ({why})"
                raise ConfigurationError(f"{late}; its log says:\n{self._log_tail()}")
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        """Stop the server in good order and wait for its end. Idempotent."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would, and wait for its end."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start the server. Stored data survives."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop, and remove sockets, log and temporary data."""
        self.stop()
        shutil.rmtree(
            self.home, ignore_errors=True
        )  # also without it the directory of a server that is gone is harmless

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _launch(self) -> None:
        user, group = self._identity() or (None, None)
        command = self._command()
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHER, "watcher", self.orphan_signal.name.removeprefix("SIG"), str(self.home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.home,
                start_new_session=True,
                user=user,
                group=group,
                extra_groups=None if user is None else [],
            )
        self._tell_watcher(b"%d\n" % self._process.pid)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(timeout=self.start_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reap()

    def _reap(self) -> None:
        assert self._process is not None
        assert self._watcher is not None
        self._process.wait()
        self._tell_watcher(b"stopped\n")
        self._watcher.communicate()
        self._process = self._watcher = None

    def _tell_watcher(self, line: bytes) -> None:
        assert self._watcher is not None
        assert self._watcher.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the watcher was ended from outside: it needs no message
            self._watcher.stdin.write(line)
            self._watcher.stdin.flush()

    def _log_tail(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines() if self.log_path.exists() else []
        return "\n".join(f"  {line}" for line in lines[-15:]) or "  (nothing)"
