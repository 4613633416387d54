"""The state machine: random commands to one engine and its store, whose answers and rows are held to the model."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model.answers import Answers
from model.asks import PICK, PLAIN, Graph, Held, Wish, graphs, wishes, workflow_of
from model.checks import Reader
from model.execution import OPEN, Execution, Key
from model.model import Model, Worker
from model.purging import Purging
from model.waits import RULES, WAITS
from model.world import World
from spanloom.engine.errors import InvalidTransition, StaleVersion
from spanloom.engine.store.requests import NodeKey, Outcome, RecordRequest
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.testing.clock import ManualClock

LEASE_SECONDS = 20.0
MOST_UNENDED = 2  # of those that are no children, as far as possible
FULL_EVERY = 5  # steps: the others look at the executions that they touched
_CONTROLS: dict[str, tuple[Sequence[ExecutionStatus], ExecutionStatus | None]] = {  # from where, and when it is done
    "pause": ((ExecutionStatus.RUNNING,), ExecutionStatus.PAUSED),
    "resume": ((ExecutionStatus.PAUSED,), ExecutionStatus.RUNNING),
    "retry": ((ExecutionStatus.FAILED,), None),
    "cancel": (OPEN, ExecutionStatus.CANCELLED),
}
_FITTING = {ExecutionStatus.RUNNING: "pause", ExecutionStatus.PAUSED: "resume"}


class Machine(Purging, *RULES, RuleBasedStateMachine):  # type: ignore[misc]  # as many as are found
    """Workers `a` and `b`, later `c` and so on, an engine, operators and sweepers, all in one thread on one clock."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.store, self.engine = self.world.fresh(self.clock)
        self.model = Model(WAITS)
        self.reader = Reader(self.store, self.model)
        self.answers = Answers(self.model, self.clock)
        self.touched: set[str] = set()
        self.steps = 0
        self.calls: list[tuple[list[NodeKey], str, str]] = []  # claims with a token
        self.records: list[tuple[RecordRequest, Any]] = []
        self.fresh_records: list[tuple[RecordRequest, Any]] = []  # of the last step
        self.sent_at = -1
        for _ in range(2):
            self._register()

    # ---- starting ----

    @initialize(graph=graphs())
    def first(self, graph: Graph) -> None:
        self._start(graph, None, None)

    @precondition(lambda self: len(self._unended()) < MOST_UNENDED and not self.model.full)
    @rule(graph=graphs(), delay=st.sampled_from([None] * 4 + [5.0]), deadline=st.sampled_from([None, None, 15.0]))
    def start(self, graph: Graph, delay: float | None, deadline: float | None) -> None:
        self._start(graph, delay, deadline)

    def _start(self, graph: Graph, delay: float | None, deadline: float | None) -> None:
        workflow = workflow_of(graph)
        self.engine.register_workflow(workflow)
        execution_id = self.engine.enqueue_workflow(workflow.id, delay=delay, deadline=deadline)
        self.model.start(execution_id, workflow, self.clock(), delay, deadline)
        self.answers.take(self._pushed())
        self.touched.add(execution_id)

    # ---- claiming ----

    @rule(worker=PICK, picks=st.lists(PICK, min_size=1, max_size=3), token=st.booleans())
    def claim(self, worker: int, picks: list[int], token: bool) -> None:
        keys = [self._key(pick) for pick in picks]
        given = str(uuid.UUID(int=len(self.calls))) if token else None
        self._claim(keys, self._worker(worker), given)
        if given is not None:
            self.calls.append((keys, self._worker(worker), given))

    @rule(worker=PICK)
    def fetch(self, worker: int) -> None:
        """Claim all that is queued, as a worker with many free slots does."""
        live = [name for name in self.model.workers if self.model.live(name, self.clock())] or [self._register()]
        if queued := self._queued():
            self._claim(queued, live[worker % len(live)], None)

    @precondition(lambda self: self.calls)
    @rule(call=PICK)
    def claim_again(self, call: int) -> None:
        self._claim(*self.calls[-1 - call % len(self.calls)])

    def _claim(self, keys: list[NodeKey], worker_id: str, token: str | None) -> None:
        answers = self.store.claim(keys, worker_id=worker_id, token=token)
        self.answers.claimed(keys, worker_id, token, answers)
        self.touched.update(key.execution_id for key in keys)

    # ---- recording ----

    @rule(wish=wishes(*PLAIN, Outcome.COMPLETED))
    def record(self, wish: Wish) -> None:
        self._record([wish])

    @rule(wish=wishes(*WAITS))
    def park(self, wish: Wish) -> None:
        """Let a claimed run wait."""
        self._record([wish])

    @rule(some=st.lists(wishes(*PLAIN, Outcome.COMPLETED), min_size=2, max_size=4))
    def record_together(self, some: list[Wish]) -> None:
        self._record(some)

    @rule(some=st.lists(wishes(Outcome.COMPLETED, Outcome.COMPLETED, Outcome.FAILED), min_size=1, max_size=4))
    def work(self, some: list[Wish]) -> None:
        """End what runs and what is queued, one after the other, so that a run of the machine comes to some end."""
        for wish in some:
            self._record([wish])

    @precondition(lambda self: self.records)
    @rule(which=PICK)
    def record_again(self, which: int) -> None:
        """Send any earlier record again, also one that was refused."""
        self._send([self.records[which % len(self.records)][0]])

    @precondition(lambda self: len(self.fresh_records) == 1 and self.sent_at == self.steps - 1)
    @rule()
    def record_again_at_once(self) -> None:
        """Send the last record again, as if its answer had been lost."""
        ((record, first),) = self.fresh_records
        again = self.store.record([record], epoch=self.model.epoch)[0]
        note(f"{record} is answered again: {again}")
        self.answers.same_again(record, first, again)

    def _record(self, some: Sequence[Wish]) -> None:
        records: list[RecordRequest] = []
        for wish in some:
            held = self._held(wish)
            if held is None:
                continue
            execution = self.model.executions[held.execution_id]
            run = execution.runs.get(held.key)
            wait = WAITS[wish.what] if isinstance(wish.what, WaitKind) else None
            if wait and run is not None and run.wait and run.wait[0] is WaitKind.ITEMS:
                continue  # its items have ended: it ends as well, or is retried
            if wait and not wait.may(self.model, held):
                continue
            if held.key[1] and any(
                (one.execution_id, one.node_id) == (held.execution_id, held.key[0]) for one in records
            ):
                continue  # in which order they count shows in what starts next
            fields = wait.fields(wish, held, self.model, len(self.records)) if wait else {}
            records.append(wish.record(execution, held, fields))
        if records:
            self._send(records)

    def _send(self, records: list[RecordRequest]) -> None:
        answers = self.store.record(records, epoch=self.model.epoch)
        for record, answer in zip(records, answers, strict=True):
            note(f"{record} is answered {answer}")
        self.answers.recorded(records, answers)
        self.sent_at = self.steps
        self.fresh_records = list(zip(records, answers, strict=True))
        self.records += self.fresh_records
        self.touched.update(one.execution_id for one in records)
        self.touched.update(one.child.execution_id for one in records if one.child is not None)

    # ---- time, workers, Redis ----

    @rule(seconds=st.sampled_from([0.5, 2.5, 9.0]), beats=st.sampled_from([True, True, True, False]))
    def wait(self, seconds: float, beats: bool) -> None:
        """Let time pass; mostly the workers' hearts beat."""
        for name, one in self.model.workers.items():
            if beats and not one.released:
                self._renew(name, LEASE_SECONDS + seconds)
        self.clock.advance(seconds)

    @rule(worker=PICK, what=st.sampled_from(["lapse", "lapse", "lose", "lose", "renew", "retire", "retire another"]))
    def lease(self, worker: int, what: str) -> None:
        """Do something to a worker's lease; one that is lost is one whose end a sweep finds at once."""
        busy = [name for name in self.model.workers if any(self.model.held_by(name))]
        name = busy[worker % len(busy)] if busy and worker % 3 else self._worker(worker)
        if what in ("lapse", "lose"):
            self._lapse(name)
            if what == "lose":
                self._sweep({}, 500)
        elif what == "renew":
            self._renew(name, LEASE_SECONDS)
        else:
            self._retire(name if what == "retire" else str(uuid.UUID(int=10**9)))

    @precondition(lambda self: any(one.released for one in self.model.workers.values()))
    @rule()
    def register(self) -> None:
        """Put workers in the place of those that lost their leases, as their processes do."""
        for name in [name for name, one in self.model.workers.items() if one.released]:
            if not any(self.model.held_by(name)):
                del self.model.workers[name]
                self._register()

    def _lapse(self, name: str) -> None:
        """Let a worker's lease lapse, and no other's; a sweep may find it."""
        left = max((self.model.workers[name].until - self.clock()).total_seconds(), 0.0)
        for other, one in self.model.workers.items():
            if other != name and not one.released:
                self._renew(other, LEASE_SECONDS + left)
        self.clock.advance(left)

    def _retire(self, name: str) -> None:
        self.touched.update(execution.id for execution, _ in self.model.held_by(name))
        known = name in self.model.workers
        self.model.retire(name)
        self.answers.take(self.store.unregister_worker(name, epoch=self.model.epoch))
        if known:
            self._register()

    @rule(right=st.booleans())
    def raise_epoch(self, right: bool) -> None:
        state = self.store.raise_epoch(self.model.epoch if right else self.model.epoch + 1, "redis")
        self.model.epoch += right
        self.engine.epoch.number = self.model.epoch
        assert state.epoch == self.model.epoch == self.store.get_epoch().epoch

    def _register(self) -> str:
        worker_id = str(uuid.uuid4())
        self.store.register_worker(
            worker_id, name="w", host="h", pid=1, queues=["default"], lease_seconds=LEASE_SECONDS
        )
        self.model.workers[worker_id] = Worker(self.answers.later(LEASE_SECONDS))
        return worker_id

    def _renew(self, name: str, seconds: float) -> None:
        worker = self.model.workers[name]
        assert self.store.renew_lease(name, lease_seconds=seconds) is not worker.released
        if not worker.released:
            worker.until = self.answers.later(seconds)

    # ---- sweeping ----

    @rule(
        head=st.sampled_from(["unknown", "empty", "older", "now"]),
        limit=st.sampled_from([500, 500, 500, 3, 1]),
    )
    def sweep(self, head: str, limit: int) -> None:
        now = self.clock()
        shown: dict[str, datetime | None] = {"empty": None, "older": self.answers.earlier(3), "now": now}
        self._sweep({} if head == "unknown" else {"default": shown[head]}, limit)

    def _sweep(self, heads: dict[str, datetime | None], limit: int) -> None:
        now = self.clock()
        self.model.release(now)
        found = self.model.candidates(heads, self.answers.pushed_at, now)
        swept = self.store.sweep(heads=heads, epoch=self.model.epoch, limit=limit)
        note(f"swept {swept}")
        self.answers.swept(found, swept, limit, self.store)
        self.touched.update(self.model.executions)

    # ---- control ----

    @rule(
        which=PICK,
        action=st.sampled_from(["fitting"] * 4 + list(_CONTROLS)),
        revision=st.sampled_from([None, None, 0, 1]),
    )
    def control(self, which: int, action: str, revision: int | None) -> None:
        """Do to an execution what fits its status, or anything; `revision`: how far the one that is told is off."""
        execution = self._execution(which)
        self._control(execution, _FITTING.get(execution.status, "retry") if action == "fitting" else action, revision)

    @precondition(lambda self: any(one.status is ExecutionStatus.FAILED for one in self.model.executions.values()))
    @rule(which=PICK)
    def retry(self, which: int) -> None:
        failed = [one for one in self.model.executions.values() if one.status is ExecutionStatus.FAILED]
        self._control(failed[which % len(failed)], "retry", None)

    def _control(self, execution: Execution, action: str, off: int | None) -> None:
        allowed, done = _CONTROLS[action]
        before, wrong = execution.status, bool(off)
        told = None if off is None else execution.revision + off
        call: Callable[..., bool] = getattr(self.engine, f"{action}_execution")
        self.touched.update(self.model.executions)
        try:
            answer = call(execution.id, expected_revision=told)
        except StaleVersion as error:
            if not wrong or error.current is None:
                raise
            return
        except InvalidTransition:
            assert before not in (*allowed, done), f"{action} of a {before} execution"
            return
        assert answer is (before is not done), f"{action} of a {before} execution is answered {answer}"
        if answer:
            assert before in allowed, f"{action} of a {before} execution"
            assert not wrong, f"revision {told} is wrong"
            self._controlled(execution, action)

    def _controlled(self, execution: Execution, action: str) -> None:
        now = self.clock()
        if action == "cancel":
            self.model.cancel(execution, now)
            self.model.wake(execution)  # as the engine does
        elif action == "retry":
            self.model.retry(execution, now)
        else:
            (self.model.pause if action == "pause" else self.model.resume)(execution)
        self.answers.take(self._pushed())

    # ---- after every step ----

    @invariant()
    def agrees(self) -> None:
        all_of_it = self.steps % FULL_EVERY == 0
        differences = list(self.reader.differences(set(self.model.executions) if all_of_it else self.touched))
        differences += self.answers.owed()
        assert not differences, "\n".join(differences)
        self.answers.look(self.reader.rows)
        if all_of_it:
            differences += self.reader.totals_differ()
            assert not differences, "\n".join(differences)
        self.touched = set()
        self.steps += 1

    # ---- picking ----

    def _execution(self, pick: int) -> Execution:
        return list(self.model.executions.values())[pick % len(self.model.executions)]

    def _worker(self, pick: int) -> str:
        return list(self.model.workers)[pick % len(self.model.workers)]

    def _queued(self) -> list[NodeKey]:
        return [
            NodeKey(execution.id, *key)
            for execution in self.model.executions.values()
            for key, run in execution.runs.items()
            if run.status is NodeStatus.QUEUED
        ]

    def _key(self, pick: int) -> NodeKey:
        """One that is queued, as after a push, one that is running, as after a push too many, or any."""
        queued, running = self._queued(), [NodeKey(one.execution_id, *one.key) for one in self._counting()]
        if queued and pick % 4 > 1:
            return queued[pick // 4 % len(queued)]
        if running and pick % 4 == 1:
            return running[pick // 4 % len(running)]
        every: list[NodeKey] = []
        for execution in self.model.executions.values():
            keys: dict[Key, None] = dict.fromkeys([*((node, 0) for node in execution.inputs), *execution.runs])
            every += [NodeKey(execution.id, *key) for key in keys]
        return every[pick // 4 % len(every)]

    def _counting(self) -> list[Held]:
        return [one for one in self.answers.claims if self.answers.holds(one)]

    def _held(self, wish: Wish) -> Held | None:
        """A claim that counts, for which one is made if there is none; or any that was ever given."""
        claims = self.answers.claims
        counting = self._counting()
        if not wish.stale and (not counting or wish.claim % 3 == 0):
            self.fetch(wish.claim)
            counting = self._counting()
        some = claims if wish.stale else counting
        return some[wish.claim % len(some)] if some else None

    def _unended(self) -> list[Execution]:
        return [one for one in self.model.executions.values() if not one.status.ended]

    def _pushed(self) -> list[Any]:
        jobs, self.engine.pushed = self.engine.pushed, []
        return jobs


def machine_over(world: World) -> type[Machine]:
    """Return the machine that drives this world."""
    return type("Driven", (Machine,), {"world": world})
