"""A signal is heard while the main thread waits, and in no process that is forked."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = """
import os, signal, sys, threading
from spanloom.worker.process import signals

def stop():
    print("heard", flush=True)
    os._exit(0)

signals.install_signal_handlers(stop, stop)
number = signal.Signals[sys.argv[1]]
# A thread that gets the signal leaves the main thread in its wait, as one that comes just before the wait does.
threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), number)).start()
os.read(os.pipe()[0], 1)
"""

FORKED = """
import os, signal, sys
from spanloom.worker.process import signals

signals.install_signal_handlers(lambda: os._exit(3), lambda: os._exit(3))
number = signal.Signals[sys.argv[1]]
for _ in range(20):
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    os.kill(child, number)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run(program: str, number: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, number], capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_is_heard_at_once_though_the_main_thread_waits(number: str) -> None:
    ended = run(BLOCKED, number)

    assert (ended.returncode, ended.stdout) == (0, "heard\n"), ended.stderr


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", -15), ("SIGINT", -2)])
def test_a_forked_process_ends_by_a_signal_and_its_parent_does_not_hear_it(number: str, code: int) -> None:
    ended = run(FORKED, number)

    assert (ended.returncode, ended.stdout.split()) == (0, [str(code)] * 20)
