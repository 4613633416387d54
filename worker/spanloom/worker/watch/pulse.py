"""The pulse: watches the parts of a worker from a thread of its own, and gives up for one that stands still."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import structlog

from spanloom.worker.node.attempt import RunningAttempt
from spanloom.worker.node.claim_monitor import ClaimMonitor, RunningNode
from spanloom.worker.node.event_loop import EventLoopThread
from spanloom.worker.service import JOIN_SECONDS, Phase, WorkerState
from spanloom.worker.watch.servers import Servers
from spanloom.worker.watch.stall import Stall
from spanloom.worker.watch.surrender import Surrender

__all__ = ["Pulse", "Thread", "Turning"]

_log = structlog.get_logger("spanloom.worker")
_LOOK_SECONDS = 0.25
_BLOCKED_SECONDS = 1.0  #: for so long a handler may block the event loop unnoticed


class Thread(Protocol):
    """A part that lives on a thread of its own."""

    @property
    def died(self) -> bool:
        """Whether the thread has ended without stop()."""
        ...


class Turning(NamedTuple):
    """A part that goes round, or waits for a server."""

    name: str
    turns: Callable[[], int | None]  #: counts them; None while it need not turn
    period: float = 0.0  #: how many seconds one may take in which nothing happens


class Pulse:
    """The service that calls `beat` while every part of a worker moves, and gives up, once, when one does not.

    Time passes for it only while it runs: nothing counts as standing still because the machine was suspended, or this
    process was stopped. A part that waits for a store or a Redis that is away does not stand still.
    """

    def __init__(
        self,
        threads: Mapping[str, Thread],
        turning: Sequence[Turning],
        claims: ClaimMonitor,
        event_loop: EventLoopThread,
        servers: Servers,
        *,
        seconds: float,
        grace_seconds: float,
        own_failure: Callable[[], str | None],
        shortage: Callable[[], str | None],
        beat: Callable[[], object],
        state: WorkerState,
        surrender: Surrender,
    ) -> None:
        """Take two functions that return a reason or None.

        `own_failure` returns why something in this process can't be trusted any more. `shortage` returns a
        lack of this process that may pass. With `seconds` 0 nothing counts as standing still,
        but a handler that blocks the event loop is still logged.
        """
        self._threads = threads
        self._turning = turning
        self._claims = claims
        self._event_loop = event_loop
        self._servers = servers
        self._seconds = seconds
        self._grace_seconds = grace_seconds
        self._own_failure = own_failure
        self._shortage = shortage
        self._lacks: str | None = None
        self._dead: set[str] = set()
        self._beat = beat
        self._state = state
        self._surrender = surrender
        self._clock = (time.monotonic,)  # in a tuple: whoever patches the modules' names does not find it
        self._now = 0.0
        self._read_at = 0.0
        self._turned: dict[str, tuple[int | None, float]] = {}  # by part: its turns, and since when
        self._began: dict[RunningAttempt, float] = {}
        self._logged_at = 0.0  # when a blocked loop was
        self._pause = min(_LOOK_SECONDS, seconds / 8) if seconds else _LOOK_SECONDS
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spanloom-pulse", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(JOIN_SECONDS)

    def check(self) -> Stall | None:
        """Return why this worker must give up; None while all of it moves. Logs a handler that blocks the loop."""
        now = self._pass_time()
        running = self._claims.running()
        blocked = self._seconds_blocked(now, running)
        if not self._seconds:
            return None
        if (failure := self._own_failure()) is not None:
            return Stall(failure, running, lapses=True)
        dead_before, self._dead = self._dead, {name for name, thread in self._threads.items() if thread.died}
        if dead := sorted(dead_before & self._dead):  # at two looks: one that is just being started looks dead, too
            return Stall(f"its {dead[0]} has ended", running, lapses=True)
        if self._still(Turning("shortage", self._turns_without_shortage), now) > self._seconds:
            return Stall(f"for {self._seconds:g} s {self._lacks}")
        if blocked > self._seconds:
            return self._stall_of_the_loop(running)
        if still := [part for part in self._turning if self._still(part, now) > self._seconds + part.period]:
            if not self._servers.problems():
                what = still[0].name
                reason = f"its {what} has stood still for {self._seconds:g} s, though store and Redis answer"
                return Stall(reason, running, lapses=True)
            for part in still:  # it waits for a server; its time begins anew when that is back
                self._turned[part.name] = (None, now)
        if overdue := self._overdue(running, now):
            names = ", ".join(sorted({one.node.id for one in overdue}))
            reason = f"a handler goes on {self._seconds:g} s after its timeout, and can't be ended: {names}"
            return Stall(reason, overdue=overdue, patient=True)
        return None

    def _run(self) -> None:
        self._read_at, failed = self._clock[0](), 0.0
        while not self._stopped.wait(self._pause):
            try:
                stall = self.check()
                failed = 0.0
            except Exception as error:  # what a handler has left may break the checks as well
                stall = None
                failed += self._pause
                if failed < max(self._seconds, self._pause):
                    continue
                if self._seconds:
                    reason = f"its checks fail with {type(error).__name__}"
                    stall = Stall(reason, self._claims.running(), lapses=True)
            self._beat()
            if stall is not None:
                self._surrender.begin(stall)
                self._surrender.finish(self._let_others_end(stall) if stall.patient else stall)
                return

    def _let_others_end(self, stall: Stall) -> Stall:
        """Let the nodes that do not stand still have their grace; return the stall with those that do then."""
        until = self._now + self._grace_seconds
        while (now := self._pass_time()) < until and not self._state.aborting:
            running = self._claims.running()
            stall = stall._replace(overdue=self._overdue(running, now))
            if len(stall.overdue) == len(running):
                break
            self._beat()
            self._state.wait_for(Phase.ABORTING, self._pause)
        return stall

    def _pass_time(self) -> float:
        read_at, self._read_at = self._read_at, self._clock[0]()
        self._now += max(0.0, min(self._read_at - read_at, 4 * self._pause))
        return self._now

    def _still(self, part: Turning, now: float) -> float:
        turns = part.turns()
        before, since = self._turned.get(part.name, (None, now))
        if turns is None or turns != before:
            self._turned[part.name] = (turns, now)
            return 0.0
        return now - since

    def _turns_without_shortage(self) -> int | None:
        self._lacks = self._shortage()
        return None if self._lacks is None else 0

    def _overdue(self, running: Sequence[RunningNode], now: float) -> list[RunningNode]:
        began = self._began = {
            one.attempt: now if one.attempt.starting else self._began.get(one.attempt, now) for one in running
        }
        timed = [(one, one.node.timeout) for one in running]
        return [
            one for one, timeout in timed if timeout is not None and now - began[one.attempt] > timeout + self._seconds
        ]

    # ---- the event loop ----

    def _seconds_blocked(self, now: float, running: Sequence[RunningNode]) -> float:
        """Return how long the loop has not turned; log which handler blocks it, first after a second."""
        loop = self._event_loop
        still = self._still(Turning("event loop", lambda: loop.turns if loop.poked else None), now)
        loop.poke()
        if still < _BLOCKED_SECONDS:
            self._logged_at = 0.0
        elif still > 2 * self._logged_at:
            self._logged_at = still
            owner, stack = loop.blocker()
            _log.warning(
                "event_loop_blocked",
                **(owner.log_buffer.ids() if isinstance(owner, RunningAttempt) else {}),
                seconds=round(still, 1),
                waiting=len(loop.owners()) - 1,
                stack=stack,
                hint="an async handler must await what takes time: asyncio.to_thread(…), or a handler without async",
            )
        return still

    def _stall_of_the_loop(self, running: Sequence[RunningNode]) -> Stall:
        owner, _ = self._event_loop.blocker()
        on_the_loop = set(self._event_loop.owners())
        blocks = [one for one in running if one.attempt is owner] or [
            one for one in running if one.attempt in on_the_loop
        ]
        names = ", ".join(sorted({one.node.id for one in blocks}))
        reason = f"its event loop has been blocked for {self._seconds:g} s, by: {names or 'no node'}"
        timed = [one for one in blocks if one.node.timeout is not None]
        return Stall(reason, [one for one in blocks if one.node.timeout is None], timed)
