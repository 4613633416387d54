"""The supervisor as a program of its own, over stubs of worker processes: whom it ends, replaces, and waits for."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from spanloom.worker.process import supervisor

STALL_SECONDS = 1.0

#: What a process does that works: it shares its pulse, and ends when it is requested to, with the number of requests.
WORKS = """
import mmap, os, sys, threading, time
page = mmap.mmap(int(os.environ["SPANLOOM_PULSE"]), 16)
page[8] = 1
def beat():
    number = 0
    while True:
        number += 1
        page[:8] = number.to_bytes(8, "little")
        time.sleep(0.05)
threading.Thread(target=beat, daemon=True).start()
open(f"{sys.argv[1]}/{os.getpid()}", "w").close()
def requests():
    while os.read(int(os.environ["SPANLOOM_PARENT_PIPE"]), 1):
        yield
"""
ENDS_AT_ONCE = WORKS + "\nfor _ in requests(): os._exit(0)"
ENDS_AT_THE_SECOND = WORKS + "\nrequested = requests()\nnext(requested)\nnext(requested)\nos._exit(0)"
LEAVES_AN_ORPHAN = (
    WORKS
    + """
if os.fork() == 0:
    if os.fork() == 0:
        open(f"{sys.argv[1]}/{os.getpid()}", "w").close()
    os._exit(0)
os.wait()
for _ in requests(): os._exit(0)
"""
)
#: The first two are to be replaced as soon as both run; what comes after them works once a file named "goes" is there.
RETIRES = (
    WORKS.replace(
        "page[8] = 1",
        """
started = 2
first = sum(name.isdigit() for name in os.listdir(sys.argv[1])) < started
open(f"{sys.argv[1]}/{os.getpid()}", "w").close()
while not first and not os.path.exists(f"{sys.argv[1]}/goes"):
    time.sleep(0.02)
page[8] = 1
while first and sum(name.isdigit() for name in os.listdir(sys.argv[1])) < started:
    time.sleep(0.02)
page[9] = first
""",
    )
    + "\nfor _ in requests(): os._exit(0)"
)
#: It is to be replaced, leaves a file at the first request to end, and ends at the second.
RETIRES_SLOWLY = (
    WORKS
    + """
page[9] = 1
requested = requests()
next(requested)
open(f"{sys.argv[1]}/asked", "w").close()
next(requested)
os._exit(0)
"""
)
NEVER_ENDS = WORKS + "\npage[9] = 1\nfor _ in requests(): pass"
_CHILD_SUBREAPER = 36  #: of prctl: orphans below this process become its children, as they do below the first one


class Supervising:
    """A supervisor over processes of one program, and a folder in which each that works leaves its id."""

    def __init__(
        self,
        folder: Path,
        program: str,
        *,
        processes: int = 1,
        before: Callable[[], object] | None = None,
        **options: object,
    ) -> None:
        self.folder = folder
        plan = {
            "command": [sys.executable, "-I", "-S", "-c", program, str(folder)],
            "environments": [{}] * processes,
            "grace_seconds": 20.0,
            "pauses": [0.1, 1.0],
            "stall_seconds": STALL_SECONDS,
            **options,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__],
            env={**os.environ, supervisor.PLAN: json.dumps(plan)},
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before,
        )

    @property
    def started(self) -> set[int]:
        return {int(path.name) for path in self.folder.iterdir() if path.name.isdigit()}

    def end(self, timeout: float = 20) -> tuple[int, list[dict[str, object]]]:
        """Wait for its end; return its exit code and what it logged."""
        _, log = self.process.communicate(timeout=timeout)
        return self.process.returncode, [json.loads(line) for line in log.splitlines() if line.startswith("{")]


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Supervising]]:
    made: list[Supervising] = []

    def start(program: str, **options: object) -> Supervising:
        made.append(Supervising(tmp_path, program, **options))  # type: ignore[arg-type]
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


def until(condition: Callable[[], object], timeout: float = 20) -> None:
    end, pause = time.monotonic() + timeout, threading.Event()
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        pause.wait(0.02)


def test_a_process_that_stands_still_is_killed_and_replaced(supervise: Callable[..., Supervising]) -> None:
    made = supervise(ENDS_AT_ONCE)
    until(lambda: made.started)
    (victim,) = made.started

    os.kill(victim, signal.SIGSTOP)

    until(lambda: len(made.started) == 2)
    assert not psutil.pid_exists(victim)
    made.process.terminate()
    code, log = made.end()
    assert code == 0
    assert [line["event"] for line in log] == ["worker_killed", "worker_died"]
    assert log[0]["reason"] == "it has not moved for 1 s"


def test_no_process_is_killed_for_the_time_in_which_the_supervisor_stood_still(
    supervise: Callable[..., Supervising],
) -> None:
    made = supervise(ENDS_AT_ONCE)
    until(lambda: made.started)
    (child,) = made.started
    pause = threading.Event()
    for pid in (made.process.pid, child):
        os.kill(pid, signal.SIGSTOP)
    pause.wait(2 * STALL_SECONDS)

    os.kill(made.process.pid, signal.SIGCONT)
    pause.wait(STALL_SECONDS / 4)
    os.kill(child, signal.SIGCONT)  # which has not moved for longer than the supervisor bears

    pause.wait(2 * STALL_SECONDS)
    made.process.terminate()

    assert made.end() == (0, [])


def test_the_second_signal_ends_the_grace_and_a_hang_up_does_not(supervise: Callable[..., Supervising]) -> None:
    made = supervise(ENDS_AT_THE_SECOND, processes=2)
    until(lambda: len(made.started) == 2)
    made.process.send_signal(signal.SIGHUP)
    made.process.send_signal(signal.SIGHUP)
    made.process.send_signal(signal.SIGTERM)
    threading.Event().wait(0.5)
    assert made.process.poll() is None

    made.process.send_signal(signal.SIGTERM)

    assert made.end() == (0, [])


@pytest.mark.parametrize(("code", "processes", "starts"), [(2, 3, 1), (1, 1, 5)])
def test_it_ends_if_no_process_ever_works(
    supervise: Callable[..., Supervising], code: int, processes: int, starts: int
) -> None:
    program = f"import os, sys; open(f'{{sys.argv[1]}}/{{os.getpid()}}', 'w').close(); sys.exit({code})"
    made = supervise(program, processes=processes, pauses=[0.01, 0.1])

    assert made.end()[0] == code

    assert len(made.started) == starts


def test_processes_that_are_to_be_replaced_are_so_one_after_the_other(supervise: Callable[..., Supervising]) -> None:
    made = supervise(RETIRES, processes=2)
    until(lambda: len(made.started) == 3)
    threading.Event().wait(0.5)  # two turns of the supervisor
    first = {pid for pid in made.started if psutil.pid_exists(pid)}
    assert len(made.started) == 3, "the other one was stopped before the new one worked"
    assert len(first) == 2

    (made.folder / "goes").touch()

    until(lambda: len(made.started) == 4)
    until(lambda: sum(map(psutil.pid_exists, made.started)) == 2)
    made.process.terminate()
    assert made.end() == (0, []), "nothing died"


def test_a_signal_leaves_one_that_is_being_replaced_its_grace_and_a_second_one_ends_it(
    supervise: Callable[..., Supervising],
) -> None:
    made = supervise(RETIRES_SLOWLY)
    until((made.folder / "asked").exists)

    made.process.terminate()
    threading.Event().wait(0.5)
    assert made.process.poll() is None, "it was requested to end once, by its supervisor"
    made.process.terminate()

    assert made.end() == (0, [])
    assert len(made.started) == 1


def test_a_burst_goes_on_with_the_new_process(supervise: Callable[..., Supervising]) -> None:
    """It ends with 0, as one that has found nothing left to do."""
    made = supervise(RETIRES.replace("started = 2", "started = 1"), burst=True)
    (made.folder / "goes").touch()

    until(lambda: len(made.started) == 2)

    made.process.terminate()
    assert made.end() == (0, [])


@pytest.mark.torture
def test_one_that_does_not_end_is_killed_after_its_grace_and_replaced(supervise: Callable[..., Supervising]) -> None:
    made = supervise(NEVER_ENDS, grace_seconds=0.0, stall_seconds=0.0)
    until(lambda: len(made.started) == 2)

    made.process.terminate()
    made.process.terminate()

    code, log = made.end()
    assert code == 0
    assert [(line["event"], line.get("reason")) for line in log][:2] == [
        ("worker_killed", "it has not ended"),
        ("worker_died", None),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets another process than the first adopt orphans")
def test_it_reaps_the_orphans_that_it_is_given_as_the_first_process_of_a_container(
    supervise: Callable[..., Supervising],
) -> None:
    libc = ctypes.CDLL(None)
    made = supervise(LEAVES_AN_ORPHAN, before=lambda: libc.prctl(_CHILD_SUBREAPER, 1, 0, 0, 0))
    until(lambda: len(made.started) == 2)

    until(lambda: sum(map(psutil.pid_exists, made.started)) == 1)

    made.process.terminate()
    assert made.end()[0] == 0
