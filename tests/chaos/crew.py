"""A crew: processes that are kept running, each replaced when it dies, and what they logged."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.fork_server import ForkedProcess

__all__ = ["Crew", "Hand"]

TESTS = Path(__file__).parent.parent
_LOOK_SECONDS = 0.05
_YOUNG_PAUSE_SECONDS = 0.3  #: before one that could not start is tried again
_END_SECONDS = 40.0


@dataclass(eq=False)
class Hand:
    """One process of a crew."""

    name: str
    place: int
    process: subprocess.Popen[bytes] | ForkedProcess
    log_path: Path
    killed: bool = False
    stopped: bool = False
    _ready: bool = field(default=False, repr=False)

    @property
    def alive(self) -> bool:
        """Whether it runs, or is stopped."""
        return self.process.poll() is None

    @property
    def ready(self) -> bool:
        """Whether it has ever said that it is ready to work."""
        self._ready = self._ready or b'_ready"' in self.log_path.read_bytes()
        return self._ready

    def lines(self) -> Iterator[dict[str, Any]]:
        """Return what it logged: JSON lines as they are, others as an error."""
        for line in self.log_path.read_text(errors="replace").splitlines():
            try:
                said = json.loads(line)
            except ValueError:
                said = {"level": "error", "event": line}
            yield said if isinstance(said, dict) else {"level": "error", "event": line}


class Crew:
    """Keep `count` processes of one command running; `command` makes the arguments of place 0, 1, … under a name.

    With `ends` a process that exits with 0 is done, and its place stays empty.
    """

    def __init__(
        self,
        what: str,
        count: int,
        command: Callable[[int, str], Sequence[str]],
        environment: Mapping[str, str],
        folder: Path,
        *,
        ends: bool = False,
    ) -> None:
        self.what = what
        self.count = count
        self.hands: list[Hand] = []  # all that ever were
        self.exits: list[tuple[Hand, int]] = []  # those that ended by themselves
        self._command = command
        self._environment = {**os.environ, **environment}
        self._folder = folder
        self._ends = ends
        self._places: dict[int, Hand] = {}
        self._done: set[int] = set()
        self._not_before: dict[int, float] = {}
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name=f"keep-{what}", daemon=True)

    def start(self) -> None:
        """Begin; returns before the processes are ready."""
        for place in range(self.count):
            self._hire(place)
        self._keeper.start()

    @property
    def done(self) -> bool:
        """Whether every place has ended with 0."""
        with self._lock:
            return len(self._done) == self.count

    def wait_ready(self, seconds: float = 60.0) -> None:
        """Wait until every process has said that it is ready. Raises TimeoutError, with what they logged."""
        until = time.monotonic() + seconds
        while not all(hand.ready for hand in list(self._places.values())):
            if time.monotonic() > until:
                said = "\n".join(hand.log_path.read_text(errors="replace") for hand in self._places.values())
                raise TimeoutError(f"the {self.what} were not ready after {seconds:g} s:\n{said}")
            time.sleep(_LOOK_SECONDS)

    def kill(self, chance: random.Random, *, others: int = 0) -> Hand | None:
        """SIGKILL one that works, and return it once it is gone; None if there is none, or too few others are left."""
        with self._lock:
            found = [hand for hand in self._at_work() if hand.ready]
            if len(found) <= others:
                return None
            hand = chance.choice(found)
            hand.killed = True
            hand.process.kill()
        hand.process.wait()
        return hand

    def stop(self, name: str) -> Hand | None:
        """SIGSTOP one by its name; None if it is gone."""
        with self._lock:
            for hand in self._at_work():
                if hand.name == name:
                    hand.stopped = True
                    hand.process.send_signal(signal.SIGSTOP)
                    return hand
        return None

    def go_on(self, hand: Hand) -> None:
        """SIGCONT one that was stopped."""
        with self._lock:
            hand.process.send_signal(signal.SIGCONT)
            hand.stopped = False

    def close(self) -> list[tuple[Hand, int]]:
        """SIGTERM all, and return those that did not end with 0, with their exit codes."""
        self._closing.set()
        if self._keeper.is_alive():
            self._keeper.join()
        running = [hand for hand in self._places.values() if hand.alive]
        for hand in running:
            self.go_on(hand)
            hand.process.terminate()
        until = time.monotonic() + _END_SECONDS
        for hand in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                hand.process.wait(max(0.1, until - time.monotonic()))
            if hand.alive:
                hand.process.kill()
                hand.process.wait()
        return [(hand, hand.process.returncode) for hand in running if hand.process.returncode != 0 and not self._ends]

    def _at_work(self) -> list[Hand]:
        return [hand for hand in self._places.values() if hand.alive and not hand.stopped and not hand.killed]

    def _keep(self) -> None:
        while not self._closing.wait(_LOOK_SECONDS):
            for place in range(self.count):
                with self._lock:
                    self._look_after(place)

    def _look_after(self, place: int) -> None:
        hand = self._places.get(place)
        if hand is not None and not hand.alive:
            del self._places[place]
            code = hand.process.returncode
            if self._ends and code == 0:
                self._done.add(place)
            elif not hand.killed:
                self.exits.append((hand, code))
                self._not_before[place] = time.monotonic() + _YOUNG_PAUSE_SECONDS
        if place not in self._places and place not in self._done and time.monotonic() > self._not_before.get(place, 0):
            self._hire(place)

    def _hire(self, place: int) -> None:
        name = f"{self.what}-{len(self.hands)}"
        log_path = self._folder / f"{name}.log"
        hand = Hand(name, place, self._begin(self._command(place, name), log_path), log_path)
        self._places[place] = hand
        self.hands.append(hand)

    def _begin(self, command: Sequence[str], log_path: Path) -> subprocess.Popen[bytes] | ForkedProcess:
        # In a session of its own: Ctrl-C reaches the program, which then ends its crews.
        log_path.touch()
        program, *arguments = command
        if program == "spanloom.cli":
            return ForkedProcess(arguments, TESTS, self._environment, log=log_path, new_session=True)
        with log_path.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=TESTS,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
