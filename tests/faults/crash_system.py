"""One system that plays the fixed workflows through once, with a crash at a point, and what was seen of it."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from redis import Redis

from faults.crash_workflows import LONG_SECONDS
from faults.effects import World
from spanloom.engine import ExecutionStatus, NodeStatus
from spanloom.engine.queue.keys import RedisKeys
from spanloom.engine.store.port import ExecutionStore
from spanloom.stores import open_store
from spanloom.testing.crash_points import AT, EXIT_CODE, FOLDER, crashes, passed
from spanloom.worker.process.serve import PARENT_PIPE
from support.fork_server import ForkedProcess, ForkServer

WORKERS = 2
PLAY_SECONDS = 60.0  #: how long the whole of it may take; on an idle machine it takes two, or four with a crash
_PAUSE_SECONDS = 0.02
_TESTS = Path(__file__).parent.parent
_OPEN = (ExecutionStatus.PENDING, ExecutionStatus.RUNNING, ExecutionStatus.PAUSED)


@dataclass(frozen=True)
class Arm:
    """Where to crash: at which passing of a point, counted in each process, and how often in all. No point: nowhere.

    `broken` is what is broken on purpose, for the play to notice. `meets` is what happens in the play that others meet
    by chance: Redis is `emptied` in the midst, or a worker is told to `stop` with jobs in its hands. After its first
    crash it has `seconds` to end.
    """

    point: str = ""
    passing: int = 1
    times: int = 1
    broken: str = ""
    meets: str = ""
    seconds: float = PLAY_SECONDS

    def __str__(self) -> str:
        times = f"x{self.times}" if self.times > 1 else ""
        return f"{self.point}#{self.passing}{times}" if self.point else "no crash"


@dataclass(frozen=True)
class Place:
    """Where one system lives."""

    store_url: str
    redis_url: str
    namespace: str
    folder: Path


@dataclass
class Played:
    """What was seen of one play."""

    place: Place
    arm: Arm
    seconds: float = 0.0
    crashed: list[str] = field(default_factory=list)  #: by the files that crashes leave
    died: list[str] = field(default_factory=list)  #: by exit codes: the roles
    passed: dict[str, int] = field(default_factory=dict)  #: its points, and how often one process passed each
    ids: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


class Process(ForkedProcess):
    """One process, which does what crash_app has under the name of its role."""

    _numbers = itertools.count(1)

    def __init__(self, server: ForkServer, role: str, environment: Mapping[str, str], folder: Path) -> None:
        self.role = role
        self._log = folder / f"{role}-{next(self._numbers)}.log"
        super().__init__(
            [],
            _TESTS,
            {**os.environ, **environment},
            log=self._log,
            server=server,
            call=f"faults.crash_app:{role}",
            parent_pipe=PARENT_PIPE,
        )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""


class CrashSystem:
    """The processes of one play: WORKERS workers, replaced when they end, and one that begins, run again if it dies.

    In the middle of it the worker that holds a node which does not end is told to stop.
    """

    def __init__(self, fork_server: ForkServer, place: Place, arm: Arm) -> None:
        self.played = Played(place, arm)
        self._fork_server = fork_server
        self._place = place
        self._deadline = time.monotonic() + PLAY_SECONDS
        self._began = time.monotonic()
        self._world = World(place.folder)
        self._running: list[Process] = []
        self._drained: Process | None = None  # told to stop, in the middle
        self._told: set[Process] = set()  # to stop
        self._to_empty = arm.meets == "emptied"
        self._begun = False
        self._stopping = False
        self._environment = {
            "SPANLOOM_STORE_URL": place.store_url,
            "SPANLOOM_REDIS_URL": place.redis_url,
            "SPANLOOM_NAMESPACE": place.namespace,
            "SPANLOOM_LOG_FORMAT": "json",
            "CRASH_BROKEN": arm.broken,
            "CRASH_MEETS": arm.meets,
            FOLDER: str(place.folder),
            AT: f"{arm.point} {arm.passing} {arm.times}" if arm.point else "",
        }

    def play(self, look: Callable[[Played, ExecutionStore, World], None]) -> Played:
        """Play all workflows through and stop the workers, then let `look` see what became of it."""
        store = open_store(self._place.store_url, namespace="spanloom")
        played = self.played
        try:
            self._start("begin")
            for _ in range(WORKERS):
                self._start("work")
            self._until(lambda: self._begun and self._ended(store), "every execution has ended")
            played.seconds = time.monotonic() - self._began
            self._stopping = True
            self._until(lambda: not self._running, "every worker has stopped")
            look(played, store, self._world)
        except Unplayed as unplayed:
            played.wrong.append(f"{unplayed}; {self._open(store)}")
        finally:
            for process in self._running:
                process.send_signal(signal.SIGKILL)
            store.close()
        played.crashed = crashes(self._place.folder)
        played.passed = passed(self._place.folder)
        return played

    def _ended(self, store: ExecutionStore) -> bool:
        stats = store.stats()
        running = stats.open_node_runs.get(NodeStatus.RUNNING)  # also in an execution that failed meanwhile
        if running or any(stats.executions.get(status) for status in _OPEN):
            return False
        due = store.next_due()  # a delay of a failed execution goes on; nothing else may be left
        return due is None or (due - datetime.now(UTC)).total_seconds() > LONG_SECONDS / 2

    def _open(self, store: ExecutionStore) -> str:
        """Tell what still waits, for a play that does not end."""
        names = {execution_id: name for name, execution_id in self.played.ids.items()}
        told = [
            f"{names.get(one.id, one.workflow_id)} is {one.status}: "
            + ", ".join(
                f"{run.node_id}.{run.item} {run.status} due {run.due_at}"
                for run in store.get_node_results(one.id)
                if not run.status.ended
            )
            for one in store.list_executions(limit=1000).items
        ]
        return "; ".join(one for one in told if not one.endswith(": "))

    def _start(self, role: str) -> None:
        self._running.append(Process(self._fork_server, role, self._environment, self._place.folder))

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        pause = threading.Event()
        while True:
            for process in [one for one in self._running if one.poll() is not None]:
                self._bury(process)
            if self._stopping:
                self._stop_ready()
            else:
                self._drain()
            if holds():
                return
            if time.monotonic() > self._deadline:
                raise Unplayed(f"not in time: {what}")
            pause.wait(_PAUSE_SECONDS)

    def _bury(self, process: Process) -> None:
        self._running.remove(process)
        if process.returncode == EXIT_CODE:
            self.played.died.append(process.role)
            self._deadline = min(self._deadline, time.monotonic() + self.played.arm.seconds)
        elif process.returncode != 0:
            raise Unplayed(f"a process ({process.role}) ended with {process.returncode}:\n{process.log[-2000:]}")
        if process is self._drained:
            self._world.open_gate("drained")
        if process.role == "begin" and process.returncode == 0:
            self._begun = True
        elif not self._stopping:
            self._start(process.role)

    def _drain(self) -> None:
        """Tell the worker to stop whose handler waits at the gate that opens only when it has stopped."""
        if not self.played.ids and (ids := self._place.folder / "ids").exists():
            self.played.ids = json.loads(ids.read_text())
        if self.played.ids and self._to_empty:
            self._to_empty = False
            self._empty_redis()
        if self._drained is not None or not self.played.ids:
            return
        here = (self.played.ids["drained"], "gate")
        at_gate = {call.pid for call in self._world.calls() if (call.execution_id, call.node_id) == here}
        for process in self._running:
            if process.role == "work" and process.pid in at_gate:
                self._drained = process
                process.send_signal(signal.SIGTERM)
                return

    def _empty_redis(self) -> None:
        """Take from Redis what is this play's, as FLUSHALL would if it had a Redis of its own."""
        with Redis.from_url(self._place.redis_url) as redis:
            namespace = self._place.namespace
            keys = RedisKeys.of(namespace)
            lists = [name for name in redis.smembers(keys.queues) if f":{namespace}.".encode() in name]
            redis.delete(keys.epoch, *lists)

    def _stop_ready(self) -> None:
        """Tell those to stop that listen by now; before that, SIGTERM ends a process as it ends any other."""
        for process in self._running:
            if process not in self._told and process.role == "work" and "worker_ready" in process.log:
                self._told.add(process)
                process.send_signal(signal.SIGTERM)


class Unplayed(Exception):
    """A play that could not be played to its end."""
