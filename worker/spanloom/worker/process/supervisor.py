"""The supervisor: starts several worker processes, restarts dead ones, and stops all of them together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

import structlog
from pydantic import BaseModel, ConfigDict

from spanloom.worker.options import WorkerOptions
from spanloom.worker.process.endpoints import Listen
from spanloom.worker.process.serve import PARENT_PIPE

__all__ = ["SupervisedProcess", "supervise"]

_log = structlog.get_logger("spanloom.worker")
_VARIABLE = "SPANLOOM_SUPERVISED"
_STABLE_SECONDS = 10.0  #: a process that lived this long restarts at once
_SETTLED_SECONDS = 3.0
_MAX_PAUSE = 30.0
_USER_ERROR = 2  #: the exit code of a worker that can't start; a restart would not help


class SupervisedProcess(BaseModel):
    """The options of one supervised process, passed to it as one JSON document in its environment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    options: WorkerOptions
    listen: Listen | None = None

    @classmethod
    def from_environment(cls) -> SupervisedProcess | None:
        """Return the options that the supervisor of this process has set, once; None without a supervisor."""
        text = os.environ.pop(_VARIABLE, None)  # a worker that a handler starts is not supervised
        return None if text is None else cls.model_validate_json(text)

    def environment(self) -> dict[str, str]:
        """Return the environment variables from which `from_environment` reads these options in another process."""
        return {_VARIABLE: self.model_dump_json()}


class _Child:
    """One worker process, and the time of its next start."""

    def __init__(self, app: str, chosen: SupervisedProcess) -> None:
        self.app = app
        self.chosen = chosen
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.pause = 0.5
        self.start_at = 0.0

    @property
    def settled(self) -> bool:
        """Whether the process has lived long enough to have started."""
        return self.process is not None and time.monotonic() - self.started > _SETTLED_SECONDS


def supervise(app: str, processes: int, options: WorkerOptions, *, listen: Listen | None = None) -> int:
    """Run `processes` workers of the engine `app` until SIGTERM or SIGINT, and return the exit code.

    A process that dies is restarted, with growing pauses if it lived for less than 10 seconds. Exit code 2 means that a
    worker can't start: before any process has started, it ends all of them, with code 2. The processes stop by
    themselves when their supervisor is gone, also if it was killed. The first one serves its endpoints at `listen`, the
    others at the following ports; a replacement takes over the port.
    """
    signals: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        signals.append(number)  # takes no lock: a signal may interrupt any code

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    read_end, write_end = os.pipe()
    listens = [listen and listen._replace(port=listen.port + number) for number in range(processes)]
    children = [_Child(app, SupervisedProcess(options=options, listen=own)) for own in listens]
    code = 0
    settled = False  # once a process has started, a failing start is an outage and no user error
    try:
        while not signals:
            for child in children:
                ended = _restart_if_ended(child, read_end)
                settled = settled or child.settled
                if (ended == _USER_ERROR and not settled) or (ended == 0 and options.burst):
                    code = max(code, ended)
                    children = [other for other in children if other is not child]
            if code or not children:
                break
            time.sleep(0.1)
    finally:
        _stop(children, options.grace_seconds)
        os.close(write_end)
        os.close(read_end)
    return code


def _restart_if_ended(child: _Child, pipe: int) -> int | None:
    """Start the child if it is due; return its exit code if it has just ended."""
    now = time.monotonic()
    if child.process is None:
        if now >= child.start_at:
            child.process = subprocess.Popen(  # noqa: S603  our own command line
                [sys.executable, "-m", "spanloom.cli", "worker", child.app],
                pass_fds=(pipe,),
                env={**os.environ, PARENT_PIPE: str(pipe), **child.chosen.environment()},
                start_new_session=True,  # Ctrl-C is for us alone: a second signal would end the children's grace
            )
            child.started = now
        return None
    ended = child.process.poll()
    if ended is None:
        return None
    child.process = None
    child.pause = 0.5 if now - child.started > _STABLE_SECONDS else min(child.pause * 2, _MAX_PAUSE)
    child.start_at = now if now - child.started > _STABLE_SECONDS else now + child.pause
    if ended != 0:
        _log.warning("worker_died", exit_code=ended, restart_in=round(max(0.0, child.start_at - now), 1))
    return ended


def _stop(children: Sequence[_Child], grace_seconds: float) -> None:
    running = [child.process for child in children if child.process is not None]
    for process in running:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds + 10.0
    for process in running:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _log.warning("worker_killed", pid=process.pid)
            process.kill()
            process.wait()
