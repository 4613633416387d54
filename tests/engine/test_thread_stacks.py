"""Other threads are looked at without a deadlock of the interpreter."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from spanloom.engine.thread_stacks import frame_of, handled_exception_of

COLLECTED_MEANWHILE = """
import gc, sys, threading
from spanloom.engine import thread_stacks

class Ring:
    def __init__(self):
        self.local = threading.local()
        self.local.ring = self

look = getattr(thread_stacks, sys.argv[1])
gc.disable()
for _ in range(50):
    Ring()
triples = [(number, number, number) for number in range(5_000)]  # the next one is not from Python's free list
mappings = [{} for _ in range(50)]
del mappings  # the next one is
gc.set_threshold(1)
try:
    raise ValueError
except ValueError:
    gc.enable()
    assert look(threading.get_ident()) is not None
assert gc.isenabled()
"""


@pytest.mark.parametrize("look", ["frame_of", "handled_exception_of"])
def test_garbage_that_is_due_does_not_stop_the_process(look: str) -> None:
    looked = subprocess.run(
        [sys.executable, "-c", COLLECTED_MEANWHILE, look], timeout=30, capture_output=True, text=True
    )

    assert looked.returncode == 0, looked.stderr


def test_the_frame_and_the_exception_of_another_thread_are_found() -> None:
    reached, over = threading.Event(), threading.Event()

    def handle() -> None:
        try:
            int("no number")
        except ValueError:
            reached.set()
            over.wait(10)

    thread = threading.Thread(target=handle)
    thread.start()
    assert reached.wait(10)
    assert thread.ident is not None
    frame, error = frame_of(thread.ident), handled_exception_of(thread.ident)
    over.set()
    thread.join()

    assert frame is not None
    assert isinstance(error, ValueError)
    assert (frame_of(0), handled_exception_of(0)) == (None, None)
