"""An engine with handlers in processes of their own, which misuse the process or its connection to the worker."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spanloom.engine import NodeContext, NodeRegistry, WorkflowEngine
from spanloom.engine.store.requests import Outcome
from spanloom.worker.isolated.frames import frame_of
from spanloom.worker.isolated.messages import Ended
from spanloom.worker.node.outcomes import AttemptResult

registry = NodeRegistry()
FOLDER = Path(os.environ.get("ISOLATED_FOLDER", "/nonexistent"))
RELEASED = threading.Event()
LEFT: list[threading.Thread] = []


def sockets() -> list[int]:
    """Return the descriptors of this process' sockets to its worker; the event loop's own pair has other ends here."""
    found: list[int] = []
    for number in range(3, 100):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                found.append(number)
        except OSError:
            continue
    return found[:1]


@registry.node("echo", executor="process")
def echo(data: Any) -> Any:
    """Return the data, its length if it is a text."""
    return len(data) if isinstance(data, str) else data


@registry.node("pid", executor="process")
def pid() -> int:
    """Return the id of the process."""
    return os.getpid()


@registry.node("forks", executor="process")
def forks() -> Any:
    """Let a copy of the process return as well; return the code that it ended with."""
    copy = os.fork()
    if copy == 0:
        return "of the copy"
    return os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])


@registry.node("aforks", executor="process")
async def aforks() -> Any:
    """Do so on the event loop."""
    return forks()


@registry.node("fork_waits", executor="process")
def fork_waits() -> int:
    """Return the code of a copy that SIGTERM ends while it waits."""
    reader, writer = os.pipe()
    copy = os.fork()
    if copy == 0:
        os.write(writer, b"!")
        while True:
            signal.pause()
    os.read(reader, 1)
    os.kill(copy, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])


@registry.node("leaves_thread", executor="process")
def leaves_thread(ctx: NodeContext) -> None:
    """Leave a thread behind that logs and opens a span once it is released."""

    def late() -> None:
        RELEASED.wait(60)
        ctx.log.warning("late")
        with ctx.span("late"):
            pass

    LEFT.append(threading.Thread(target=late, daemon=True))
    LEFT[0].start()


@registry.node("releases", executor="process")
def releases(ctx: NodeContext) -> int:
    """Release that thread, and wait for its end."""
    RELEASED.set()
    for thread in LEFT:
        thread.join()
    ctx.log.info("own")
    return len(LEFT)


@registry.node("dies", executor="process")
def dies(data: Any) -> None:
    """Exit; with data, after it has started a program that keeps the connection open."""
    if data:
        program = subprocess.Popen(["sleep", "60"], pass_fds=sockets(), stdout=subprocess.DEVNULL)
        (FOLDER / "program").write_text(str(program.pid))
    os._exit(7)


@registry.node("writes", executor="process")
def writes(data: str) -> None:
    """Write to the connection: bytes that are no message, or the answer to another call."""
    other = frame_of(Ended(999, AttemptResult(Outcome.COMPLETED, data='"of another"')))
    with socket.socket(fileno=os.dup(sockets()[0])) as connection:
        connection.sendall(other if data == "other" else b"\x00\x00\x00\x05hello")


@contextmanager
def lifespan() -> Generator[dict[str, Any]]:
    """Fail or wait, in a handler process, as long as a file is there."""
    if (FOLDER / "fails").exists():
        (FOLDER / "has_failed").touch()
        raise ConnectionError("away for a moment")
    if (FOLDER / "hangs").exists():
        (FOLDER / "is_hanging").touch()
        threading.Event().wait(60)
    yield {}


engine = WorkflowEngine(registry, "memory://", lifespan=lifespan)
