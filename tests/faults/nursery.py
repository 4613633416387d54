"""A process that has imported everything and forks others from itself: each starts in milliseconds, as itself.

`python -m faults.nursery` reads one JSON line for each process to start (`number`, `role`, `environment`, `log`), and
answers with its number and pid, and later with its number and exit code. What it started ends with it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import sys
import traceback
from typing import Any

from spanloom.testing.crashing import FOLDER
from spanloom.worker.serve import PARENT_PIPE

IMPORTED = ("faults.crash_app", "psycopg", "sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.sqlite")


def main() -> None:
    """Serve until the end of the input."""
    os.environ.setdefault(FOLDER, "")
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # what is here stays shared with those that are forked
    alive_read, alive_write = os.pipe()
    woken_read, woken_write = os.pipe()
    os.set_blocking(woken_write, False)
    signal.set_wakeup_fd(woken_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    answers = os.dup(1)
    running: dict[int, int] = {}
    buffered = b""
    while True:
        readable, _, _ = select.select([0, woken_read], [], [])
        if woken_read in readable:
            os.read(woken_read, 4096)
            while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                code = os.waitstatus_to_exitcode(ended[1])
                _answer(answers, {"number": running.pop(ended[0]), "code": code})
        if 0 in readable:
            received = os.read(0, 65536)
            if not received:
                break
            *lines, buffered = (buffered + received).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                if (pid := os.fork()) == 0:
                    for descriptor in (alive_write, woken_read, woken_write, answers):
                        os.close(descriptor)
                    _be(asked, alive_read)
                running[pid] = asked["number"]
                _answer(answers, {"number": asked["number"], "pid": pid})
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def _be(asked: dict[str, Any], alive: int) -> None:
    """Be the process that is asked for, and never return."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log = os.open(asked["log"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(asked["environment"], **{PARENT_PIPE: str(alive)})
        code = getattr(sys.modules["faults.crash_app"], asked["role"])()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _answer(descriptor: int, answer: dict[str, int]) -> None:
    os.write(descriptor, f"{json.dumps(answer)}\n".encode())


if __name__ == "__main__":
    main()
