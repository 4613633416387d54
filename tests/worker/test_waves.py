"""Brief nodes share a slot and a record; none of them waits for one that takes long, or pays for one that fails."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer

from spanloom.engine import ExecutionStatus, Node, NodeRegistry, Workflow, WorkflowEngine
from spanloom.engine.errors import SpanloomError, StoreUnavailable, Unavailability
from spanloom.engine.queue.message import NodeMessage
from spanloom.engine.store.requests import ClaimAnswer, NodeKey, Outcome, RecordRequest, RecordResult
from spanloom.stores import InMemoryExecutionStore
from spanloom.testing.workflows import fan
from spanloom.worker.briefness import LONG_SECONDS, WAVE_SECONDS, Briefness
from spanloom.worker.node.wave import FinishedRun
from spanloom.worker.recording.completion import Completion
from spanloom.worker.recording.recorder import Recorder
from spanloom.worker.service import Phase, WorkerState

MANY = 60


class Counting(InMemoryExecutionStore):
    """A store that knows what was recorded together, and does not serve the records of some executions now."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[RecordRequest]] = []
        self.claimed: list[NodeKey] = []
        self.unserved: set[str] = set()
        self.met = threading.Event()

    def claim(self, keys: Sequence[NodeKey], **options: Any) -> list[ClaimAnswer]:
        self.claimed += keys
        return super().claim(keys, **options)

    def record(self, records: Sequence[RecordRequest], **options: Any) -> list[RecordResult]:
        served = [record for record in records if record.execution_id not in self.unserved]
        self.batches.append(served)
        if len(served) < len(records):
            self.met.set()
        answers = iter(super().record(served, **options)) if served else iter(())
        full = StoreUnavailable("no room for this one", reason=Unavailability.RESOURCES)
        return [next(answers) if record in served else RecordResult(recorded=False, error=full) for record in records]


class Handlers:
    """A handler that takes next to no time, unless it is given an input that has it wait."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.leave = threading.Event()

    def brief(self, data: Any) -> Any:
        if data == "wait":
            self.entered.set()
            assert self.leave.wait(60)
        if data == "late":
            time.sleep(2 * WAVE_SECONDS)
        if data == "fail":
            raise ValueError("as it was told to")
        return data

    async def brief_async(self, data: Any) -> Any:
        if data == "cancel all":
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            return data
        return await asyncio.to_thread(self.brief, data) if data in ("wait", "late") else self.brief(data)


@pytest.fixture
def store() -> Counting:
    return Counting()


@pytest.fixture
def handlers() -> Iterator[Handlers]:
    made = Handlers()
    yield made
    made.leave.set()


@pytest.fixture(params=["sync", "async"])
def engine(store: Counting, handlers: Handlers, request: pytest.FixtureRequest) -> Iterator[WorkflowEngine]:
    registry = NodeRegistry()
    registry.node("brief")(handlers.brief if request.param == "sync" else handlers.brief_async)
    with WorkflowEngine(registry, store, FakeRedis(server=FakeServer())) as engine:
        engine.register_workflow(Workflow(id="single", nodes=[Node(id="a", type="brief")]))
        chain = [Node(id=f"n{number}", type="brief", inputs=[f"n{number - 1}"] * bool(number)) for number in range(5)]
        engine.register_workflow(Workflow(id="chain", nodes=chain))
        engine.register_workflow(fan(20, "fan", type="brief"))
        yield engine


def known_as_brief(engine: WorkflowEngine, store: Counting) -> None:
    """Have the worker learn that the handler is brief, up to a wave."""
    for _ in range(50):
        engine.run("single", 0, timeout=30)
        ids = engine.enqueue_workflows("single", [0] * MANY)
        for execution_id in ids:
            engine.wait(execution_id, 30)
        if max(map(len, store.batches)) > 8:
            return
    pytest.fail(f"no waves: {max(map(len, store.batches))}")


@pytest.mark.parametrize("workflow", ["single", "chain"])
def test_brief_nodes_are_recorded_in_waves(engine: WorkflowEngine, store: Counting, workflow: str) -> None:
    with engine.start_workers(1):
        known_as_brief(engine, store)
        store.batches.clear()

        for execution_id in engine.enqueue_workflows(workflow, [7] * 200):
            assert engine.wait(execution_id, 60).output == 7

    completed = [one for batch in store.batches for one in batch if one.outcome is Outcome.COMPLETED]
    assert len(completed) == 200 * (5 if workflow == "chain" else 1)
    assert len(store.batches) < len(completed) / 4


def test_brief_successors_go_on_where_the_node_ended(engine: WorkflowEngine, store: Counting) -> None:
    with engine.start_workers(1):
        known_as_brief(engine, store)
        store.claimed.clear()

        engine.run("fan", 7, timeout=30)

    assert [key.node_id for key in store.claimed] == ["split"], "another one came by way of Redis"


def test_nobody_waits_for_a_brief_one_that_turns_out_long(
    engine: WorkflowEngine, store: Counting, handlers: Handlers
) -> None:
    with engine.start_workers(1):
        known_as_brief(engine, store)

        ids = engine.enqueue_workflows("single", [*range(20), "wait", *range(20, 40)])
        assert handlers.entered.wait(30)
        others = [engine.wait(execution_id, 30).output for execution_id in ids if execution_id != ids[20]]

        assert others == list(range(40))
        running = store.get_execution(ids[20])
        assert running is not None
        assert running.status is ExecutionStatus.RUNNING
        handlers.leave.set()
        assert engine.wait(ids[20], 30).output == "wait"
    assert {run.attempt for one in ids for run in store.get_node_results(one)} == {1}


def test_one_that_fails_fails_alone(engine: WorkflowEngine, store: Counting) -> None:
    with engine.start_workers(1):
        known_as_brief(engine, store)

        ids = engine.enqueue_workflows("single", [*range(20), "fail", *range(20)])
        ended = [engine.wait(execution_id, 30) for execution_id in ids]

    assert [one.status for one in ended].count(ExecutionStatus.FAILED) == 1
    assert ended[20].status is ExecutionStatus.FAILED


def test_nobody_waits_for_one_that_the_store_does_not_serve(engine: WorkflowEngine, store: Counting) -> None:
    with engine.start_workers(1):
        known_as_brief(engine, store)

        ids = engine.enqueue_workflows("chain", [1] * 20)
        store.unserved = {ids[10]}
        for execution_id in ids[:10] + ids[11:]:
            assert engine.wait(execution_id, 30).output == 1
        assert store.met.wait(30)

        store.unserved = set()
        assert engine.wait(ids[10], 30).output == 1


def test_nor_do_those_that_have_yet_to_run(engine: WorkflowEngine, store: Counting) -> None:
    with engine.start_workers(1, concurrency=2):
        known_as_brief(engine, store)

        ids = engine.enqueue_workflows("single", ["late"] + [1] * 19)  # the first one alone takes the wave's time
        store.unserved = {ids[0]}
        for execution_id in ids[1:]:
            assert engine.wait(execution_id, 30).output == 1
        assert store.met.wait(30)

        store.unserved = set()
        assert engine.wait(ids[0], 30).output == "late"


def test_a_worker_that_stops_ends_its_wave_or_gives_it_back(engine: WorkflowEngine, store: Counting) -> None:
    with engine.start_workers(1):
        known_as_brief(engine, store)
        ids = engine.enqueue_workflows("chain", [1] * 100)
    with engine.start_workers(1):
        assert [engine.wait(execution_id, 60).output for execution_id in ids] == [1] * 100
    completed = [one for batch in store.batches for one in batch if one.outcome is Outcome.COMPLETED]
    ended = [one.execution_id for one in completed if one.node_id == "n4"]
    assert len(ended) == len(set(ended)) == 100


@pytest.mark.parametrize("engine", ["async"], indirect=True)
def test_a_wave_goes_on_though_one_of_it_cancels_all_tasks(engine: WorkflowEngine, store: Counting) -> None:
    with engine.start_workers(1):
        known_as_brief(engine, store)
        ids = engine.enqueue_workflows("single", [*range(20), "cancel all", *range(20)])
        outputs = [engine.wait(execution_id, 30).output for execution_id in ids]

    assert outputs == [*range(20), "cancel all", *range(20)]


# ---- without a thread ----


class Crowd:
    """A handler in which all wait for a signal, on the event loop."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.inside = 0
        self.full = threading.Event()
        self._leave: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def waits(self, data: Any) -> Any:
        if self._leave is None:
            self._leave, self._loop = asyncio.Event(), asyncio.get_running_loop()
        self.inside += 1
        if self.inside == self.number:
            self.full.set()
        await self._leave.wait()
        return data

    def leave(self) -> None:
        assert self._loop is not None
        assert self._leave is not None
        self._loop.call_soon_threadsafe(self._leave.set)


def test_async_handlers_that_wait_need_no_thread_each_and_end_together(store: Counting) -> None:
    crowd, registry = Crowd(200), NodeRegistry()
    registry.node("waits")(crowd.waits)
    with WorkflowEngine(registry, store, FakeRedis(server=FakeServer())) as engine:
        nodes = [Node(id="a", type="waits"), Node(id="b", type="waits", inputs=["a"])]
        engine.register_workflow(Workflow(id="pair", nodes=nodes))
        with engine.start_workers(1, concurrency=200):
            before = threading.active_count()
            ids = engine.enqueue_workflows("pair", [*range(200)])
            assert crowd.full.wait(30)
            assert threading.active_count() < before + 20
            crowd.leave()
            assert [engine.wait(execution_id, 30).output for execution_id in ids] == [*range(200)]

    assert {run.attempt for one in ids for run in store.get_node_results(one)} == {1}
    assert len([batch for batch in store.batches if batch]) < 200


@pytest.mark.parametrize("engine", ["async"], indirect=True)
def test_what_a_fault_of_ours_breaks_fails_alone(
    engine: WorkflowEngine, store: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = Completion.end

    def breaks(self: Completion, run: FinishedRun, *rest: Any) -> None:
        if run.ending.data == '"breaks"':
            raise RuntimeError("a fault")
        end(self, run, *rest)

    monkeypatch.setattr(Completion, "end", breaks)
    with engine.start_workers(1, concurrency=4):
        ended = [engine.wait(one, 30) for one in engine.enqueue_workflows("single", ["breaks", 1, 2])]

    assert [one.status for one in ended] == [ExecutionStatus.FAILED, *[ExecutionStatus.COMPLETED] * 2]


# ---- what shares a wave ----


def message(number: int, node_type: str, losses: int = 0) -> NodeMessage:
    return NodeMessage(f"job {number}", "e", "n", number, node_type, 1, 0.0, "spanloom.default", losses)


def test_types_are_brief_by_what_they_took_lately() -> None:
    briefness = Briefness()
    assert not briefness.is_brief("new")
    briefness.note("new", WAVE_SECONDS / 4)
    assert briefness.is_brief("new")

    briefness.note("new", LONG_SECONDS)  # once is enough
    assert not briefness.is_brief("new")
    for _ in range(100):
        briefness.note("new", WAVE_SECONDS / 4)
    assert briefness.is_brief("new")


def test_waves_are_bounded_by_number_and_by_time() -> None:
    briefness = Briefness()
    briefness.note("quick", WAVE_SECONDS / 1_000)
    briefness.note("half", WAVE_SECONDS / 2)
    briefness.note("long", 1.0)
    items = ["quick"] * 40 + ["half"] * 5 + ["long", "unknown"]

    waves = briefness.waves(items, lambda node_type: message(0, node_type))

    assert sorted(map(len, waves)) == [1, 1, 1, 2, 2, 8, 32] or sorted(map(len, waves)) == [1, 1, 2, 2, 9, 32]
    assert ["long"] in waves
    assert ["unknown"] in waves
    assert sorted(item for wave in waves for item in wave) == sorted(items)


def test_a_run_that_was_lost_shares_no_wave() -> None:
    briefness = Briefness()
    briefness.note("quick", WAVE_SECONDS / 1_000)

    waves = briefness.waves([0, 1, 0, 2], lambda losses: message(0, "quick", losses))

    assert sorted(waves) == [[0, 0], [1], [2]]


def test_so_many_successors_go_on_as_a_slot_runs_in_a_moment() -> None:
    briefness = Briefness()
    briefness.note("brief", WAVE_SECONDS / 100)
    briefness.note("less", WAVE_SECONDS / 2)

    assert briefness.kept([], 0) == briefness.kept(["brief"], 0) == 1
    assert briefness.kept(["brief"] * 50, 1) == 50
    assert 50 < briefness.kept(["less"] * 500, 1) < briefness.kept(["brief"] * 500, 1) < 500
    assert briefness.kept(["brief"] * 500, 10) == briefness.kept(["brief"] * 500, 1) // 10
    assert briefness.kept(["brief"] * 500, 1000) == 1


def test_more_is_fetched_while_all_is_brief_and_the_rest_is_left() -> None:
    briefness = Briefness()
    briefness.note("quick", WAVE_SECONDS / 1_000)
    assert briefness.portion([], 2) == ([], [])
    assert briefness.wanted(2) == 2  # nothing that was fetched was brief

    taken, left = briefness.portion([message(number, "quick") for number in range(2)], 2)
    assert (len(taken), left) == (2, [])
    briefness.portion([], 2)
    assert briefness.wanted(2) == 64

    mixed = [message(number, "long" if number in (3, 5, 7) else "quick") for number in range(10)]
    taken, left = briefness.portion(mixed, 3)
    assert [one.item for one in left] == [7]  # in their order, and as few as can be
    assert [one.item for one in taken] == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert briefness.wanted(3) == 3


def test_as_many_are_fetched_as_make_waves() -> None:
    briefness = Briefness()
    briefness.note("quarter", WAVE_SECONDS / 4)
    jobs = [message(number, "quarter") for number in range(10)]

    taken, left = briefness.portion(jobs, 2)
    assert (len(taken), len(left)) == (8, 2)
    assert briefness.wanted(2) == 8
    assert briefness.portion(jobs[:8], 2) == (jobs[:8], [])
    assert briefness.wanted(5) == 20


# ---- records that ended together ----


class Answers:
    """Just enough of a store: answers by node, then with a result."""

    def __init__(self, *rounds: dict[str, SpanloomError] | SpanloomError) -> None:
        self.rounds = list(rounds)
        self.calls: list[list[str]] = []

    def record(self, records: Sequence[RecordRequest], *, epoch: int = 0) -> list[RecordResult]:
        self.calls.append([record.node_id for record in records])
        errors = self.rounds.pop(0) if self.rounds else {}
        if isinstance(errors, SpanloomError):
            raise errors
        return [RecordResult(record.node_id not in errors, error=errors.get(record.node_id)) for record in records]


def requests(*nodes: str) -> list[RecordRequest]:
    return [RecordRequest("e", node, 0, 1, "w", Outcome.COMPLETED) for node in nodes]


def recorder(store: Answers, state: WorkerState | None = None) -> Recorder:
    return Recorder(store, lambda: 1, state or WorkerState())  # type: ignore[arg-type]


def test_records_of_a_wave_are_one_call_and_each_has_its_own_answer() -> None:
    away = StoreUnavailable("not now", reason=Unavailability.RESOURCES)
    store = Answers({"b": away})

    answers = recorder(store).record_all(requests("a", "b", "c"))

    assert store.calls == [["a", "b", "c"]]
    assert [isinstance(answer, RecordResult) for answer in answers] == [True, False, True]


def test_while_none_is_served_all_are_tried_again() -> None:
    away = StoreUnavailable("not now", reason=Unavailability.AWAY)
    store = Answers(away, away)

    answers = recorder(store).record_all(requests("a", "b"))

    assert all(isinstance(answer, RecordResult) for answer in answers)
    assert store.calls == 3 * [["a", "b"]]


def test_a_worker_that_aborts_waits_for_none() -> None:
    state = WorkerState()
    state.advance(Phase.ABORTING)
    away = StoreUnavailable("not now", reason=Unavailability.AWAY)

    with pytest.raises(StoreUnavailable):
        recorder(Answers(away), state).record_all(requests("a", "b"))
