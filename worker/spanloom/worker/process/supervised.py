"""Supervised processes: the options that each gets from its supervisor, and the start of that supervisor."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict

from spanloom.worker.isolated.handler_process import interpreter
from spanloom.worker.options import WorkerOptions
from spanloom.worker.process import supervisor
from spanloom.worker.process.endpoints import Listen

__all__ = ["SupervisedProcess", "become_supervisor", "supervise"]

_VARIABLE = "SPANLOOM_SUPERVISED"


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


def supervise(
    app: str, processes: int, options: WorkerOptions, *, listen: Listen | None = None, log_format: str = "auto"
) -> int:
    """Run `processes` workers of the engine `app` until SIGTERM, SIGINT or SIGHUP, and return the exit code.

    Call it in the main thread; see Supervisor. The first process serves its endpoints at `listen`, the others at the
    following ports; a replacement takes over the port.
    """
    return supervisor.Supervisor(**_plan(app, processes, options, listen, log_format)).run()


def become_supervisor(
    app: str, processes: int, options: WorkerOptions, *, listen: Listen | None = None, log_format: str = "auto"
) -> NoReturn:
    """Replace this process' program by the supervisor: it needs a tenth of the memory of one that imports handlers."""
    plan = _plan(app, processes, options, listen, log_format)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    program = [sys.executable, "-I", "-S", str(Path(supervisor.__file__)), "spanloom", "worker", app]
    os.execve(sys.executable, program, {**os.environ, supervisor.PLAN: json.dumps(plan)})  # noqa: S606  no shell


def _plan(app: str, processes: int, options: WorkerOptions, listen: Listen | None, log_format: str) -> dict[str, Any]:
    listens = [listen and listen._replace(port=listen.port + number) for number in range(processes)]
    return {
        "command": [*interpreter(), "-m", "spanloom.cli", "worker", app],
        "environments": [SupervisedProcess(options=options, listen=own).environment() for own in listens],
        "grace_seconds": options.grace_seconds,
        "stall_seconds": options.stalled_after,
        "burst": options.burst,
        "json_log": log_format == "json" or (log_format == "auto" and not (sys.stderr and sys.stderr.isatty())),
    }
