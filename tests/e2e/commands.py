"""Commands as processes of their own, without the price of an interpreter for each: forked from one that is ready.

Run as a program it is that one: it reads {argv, cwd, env, out, err} a line, forks, and answers with the exit code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Commands", "Done"]


class Done(NamedTuple):
    """What became of a command."""

    returncode: int
    stdout: str
    stderr: str


class Commands:
    """Run `spanloom` commands, one after the other."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Done:
        """Run one in a folder, with this environment and no input."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        out, err = folder / ".out", folder / ".err"
        asked = {
            "argv": ["spanloom", *arguments],
            "cwd": str(folder),
            "env": dict(environment),
            "out": str(out),
            "err": str(err),
        }
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Done(code, out.read_text(), err.read_text())

    def close(self) -> None:
        """End the one they are forked from."""
        self._process.communicate("", timeout=30)


def _serve() -> None:
    import spanloom.cli.commands
    import spanloom.cli.control
    import spanloom.cli.start
    import spanloom.cli.worker
    import spanloom.stores.postgres
    import spanloom.stores.sqlite  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(asked)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(asked: dict[str, object]) -> None:
    code = 1
    try:
        os.chdir(str(asked["cwd"]))
        os.environ.clear()
        os.environ.update(asked["env"])  # type: ignore[call-overload]
        for number, place in ((0, os.devnull), (1, str(asked["out"])), (2, str(asked["err"]))):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(place, flags, 0o600), number)
        sys.argv[:] = asked["argv"]  # type: ignore[call-overload]
        from spanloom.cli.failures import run

        code = run(sys.argv[1:])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
