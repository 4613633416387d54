"""Following an execution's events while it runs: each once, in order, up to its end, whatever restarts meanwhile."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from e2e.support.harness import System
from spanloom.engine import ConfigurationError, Event, UnknownExecution, WaitTimeout
from spanloom.engine.events.stream import _Reading
from spanloom.engine.ids import uuid7

PROMPT_SECONDS = 15.0  # mostly it is 0.03; far less than a follower waits without a signal
CHAIN = [{"id": "a", "type": "echo"}, {"id": "b", "type": "echo", "inputs": ["a"]}]


def stored(system: System, execution_id: str) -> list[Event]:
    """All events that the store has of an execution."""
    found: list[Event] = []
    while page := system.engine.store.get_events(execution_id, after=found[-1].cursor if found else None):
        found += page
    return found


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def wide(width: int) -> list[dict[str, object]]:
    branches = [{"id": f"n{number}", "type": "plain", "inputs": ["first"]} for number in range(width)]
    return [
        {"id": "first", "type": "plain"},
        *branches,
        {"id": "join", "type": "count", "inputs": [one["id"] for one in branches]},
    ]


class TestFollowing:
    def test_each_change_is_yielded_up_to_the_end(self, system: System) -> None:
        execution_id = system.engine.enqueue_workflow(system.register(*CHAIN), 7)

        events = list(system.engine.events(execution_id, timeout=30))

        assert events == stored(system, execution_id)
        assert kinds(events)[:3] == ["execution.created", "execution.started", "node.queued"]
        assert kinds(events)[-1] == "execution.completed"
        assert [(one.node_id, one.kind) for one in events if one.kind in ("node.started", "node.completed")] == [
            (node, kind) for node in ("a", "b") for kind in ("node.started", "node.completed")
        ]

    def test_an_ended_execution_yields_its_history(self, system: System) -> None:
        execution = system.run(system.register(*CHAIN), 7)
        assert list(system.engine.events(execution.id, timeout=5)) == stored(system, execution.id)

    def test_five_watchers_of_a_wide_execution_see_each_event_once_and_in_order(self, system: System) -> None:
        execution_id = system.engine.enqueue_workflow(system.register(*wide(200)))
        with ThreadPoolExecutor(5) as pool:
            seen = list(pool.map(lambda _: list(system.engine.events(execution_id, timeout=90)), range(5)))

        history = stored(system, execution_id)
        assert len(history) > 400
        assert [one for one in seen if one != history] == []

    def test_every_cursor_leads_on_to_what_comes_after_it(self, system: System) -> None:
        execution = system.run(system.register(*CHAIN), 7)
        history = stored(system, execution.id)
        for position, event in enumerate(history, 1):
            rest = list(system.engine.events(execution.id, event.cursor, timeout=5))
            assert rest == history[position:]

    def test_a_watcher_that_comes_and_goes_misses_and_repeats_nothing(self, system: System) -> None:
        execution_id = system.engine.enqueue_workflow(system.register(*wide(60)))
        seen: list[Event] = []
        while not seen or seen[-1].kind != "execution.completed":
            with system.engine.events(execution_id, seen[-1].cursor if seen else None, timeout=30) as events:
                seen += [event for _, event in zip(range(7), events, strict=False)]
                assert events.cursor == seen[-1].cursor

        assert seen == stored(system, execution_id)

    def test_it_ends_with_a_failure_and_goes_on_after_it_with_the_retry(self, system: System) -> None:
        workflow_id = system.register({"id": "a", "type": "boom", "retry": {"max_attempts": 1}})
        metadata = {"test": uuid7()}
        execution_id = system.engine.enqueue_workflow(workflow_id, 7, metadata=metadata)

        first = list(system.engine.events(execution_id, timeout=30))
        assert "execution.failed" in kinds(first)
        assert list(system.engine.events(execution_id, first[-1].cursor, timeout=5)) == []
        system.redis.set(f"mended:{metadata['test']}", 1)
        system.engine.retry_execution(execution_id)
        more = list(system.engine.events(execution_id, first[-1].cursor, timeout=30))

        assert more[0].kind == "execution.retried"
        assert more[-1].kind == "execution.completed"
        assert first + more == stored(system, execution_id)

    def test_a_failure_that_was_retried_is_no_end(self, system: System) -> None:
        workflow_id = system.register({"id": "a", "type": "boom", "retry": {"max_attempts": 1}})
        metadata = {"test": uuid7()}
        failed = system.run(workflow_id, 7, metadata=metadata)
        system.redis.set(f"mended:{metadata['test']}", 1)
        system.engine.retry_execution(failed.id)
        system.engine.wait(failed.id, timeout=30)

        events = list(system.engine.events(failed.id, timeout=30))

        assert [kind for kind in kinds(events) if kind in ("execution.failed", "execution.completed")] == [
            "execution.failed",
            "execution.completed",
        ]

    def test_retries_children_and_a_pause_are_told(self, system: System) -> None:
        child = system.register({"id": "a", "type": "name"}, name="child")
        workflow_id = system.register(
            {"id": "shaky", "type": "flaky", "config": {"succeeds_at": 2}, "retry": {"max_attempts": 2, "delay": 0.01}},
            {"id": "below", "type": "workflow", "config": {"workflow": child}, "inputs": ["shaky"]},
            {"id": "gate", "type": "gate", "config": {"gate": child}, "inputs": ["below"]},
            {"id": "last", "type": "name", "inputs": ["gate"]},
        )
        execution_id = system.engine.enqueue_workflow(workflow_id)
        seen: list[str] = []
        for event in system.engine.events(execution_id, timeout=60):
            seen.append(event.kind)
            if (event.kind, event.node_id) == ("node.started", "gate"):
                system.engine.pause_execution(execution_id)
                system.open_gate(child)
            elif (event.kind, event.node_id) == ("node.held", "last"):
                system.engine.resume_execution(execution_id)

        wanted = {"node.retrying", "node.waiting", "node.held", "execution.paused", "execution.resumed"}
        assert wanted - set(seen) == set()
        assert seen[-1] == "execution.completed"


class Signals:
    """Whether a follower was signalled since the latest calm(), and whether it waits for that."""

    def __init__(self) -> None:
        self.came = threading.Event()
        self.awaited = threading.Event()

    def calm(self) -> None:
        """Return once the follower waits for a signal, and looks at the store no more before one comes."""
        give_up = time.monotonic() + 30
        while self.came.is_set() or not self.awaited.is_set():
            assert time.monotonic() < give_up
            self.awaited.clear()
            self.came.clear()
            self.awaited.wait(1)


class TestPromptness:
    """Looks at the store are made so rare here that only what is announced can be on time."""

    @pytest.fixture
    def signals(self, monkeypatch: pytest.MonkeyPatch) -> Signals:
        """Let followers wait for a minute, and once they were signalled look often: on Postgres one look may miss."""
        signals, pause_seconds = Signals(), _Reading.pause_seconds

        def signalled(reading: _Reading, came: bool) -> None:
            if came:
                signals.came.set()

        def pause(reading: _Reading) -> float:
            came = signals.came.is_set()
            reading._pause = 0.05 if came else 60.0
            if not came:
                signals.awaited.set()
            return pause_seconds(reading)

        monkeypatch.setattr(_Reading, "signalled", signalled)
        monkeypatch.setattr(_Reading, "pause_seconds", pause)
        return signals

    def test_what_is_recorded_is_announced(self, system: System, signals: Signals) -> None:
        gate = {"type": "gate", "config": {"gate": f"prompt-{system.kind}"}}
        workflow_id = system.register(
            {"id": "wait", "type": "delay", "config": {"seconds": 3600}},
            {"id": "a", **gate, "inputs": ["wait"]},
            {"id": "b", **gate, "inputs": ["a"]},
        )
        execution_id = system.engine.enqueue_workflow(workflow_id)
        system.until(execution_id, "node.waiting", "wait")

        def go_on() -> float:
            signals.calm()
            system.engine.update_node_result(execution_id, "wait")  # a worker that fetches now hears who follows
            system.arrived(f"prompt-{system.kind}")
            signals.calm()
            opened = time.monotonic()
            system.open_gate(f"prompt-{system.kind}")
            return opened

        with ThreadPoolExecutor(1) as pool:
            going = pool.submit(go_on)
            for event in system.engine.events(execution_id, timeout=60):
                if (event.kind, event.node_id) == ("node.completed", "a"):  # of an end, waiters are told as well
                    assert time.monotonic() - going.result() < PROMPT_SECONDS
                    system.open_gate(f"prompt-{system.kind}")

    def test_what_an_operator_does_is_announced(self, system: System, signals: Signals) -> None:
        gate = f"operated-{system.kind}"
        execution_id = system.engine.enqueue_workflow(
            system.register({"id": "a", "type": "gate", "config": {"gate": gate}})
        )
        system.arrived(gate)

        def pause() -> float:
            signals.calm()
            paused = time.monotonic()
            system.engine.pause_execution(execution_id)
            return paused

        with ThreadPoolExecutor(1) as pool:
            pausing = pool.submit(pause)
            for event in system.engine.events(execution_id, timeout=60):
                if event.kind == "execution.paused":
                    assert time.monotonic() - pausing.result() < PROMPT_SECONDS
                    signals.came.clear()
                    system.engine.cancel_execution(execution_id)
                    cancelled = time.monotonic()
        assert time.monotonic() - cancelled < PROMPT_SECONDS
        system.open_gate(gate)

    @pytest.mark.stores("memory", "sqlite", why="another transaction may hide for a moment what was announced")
    def test_claims_sweeps_and_the_ends_of_children_are_announced(
        self, system: System, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        child = system.register({"id": "a", "type": "name"}, name="child")
        workflow_id = system.register(
            {"id": "shaky", "type": "flaky", "config": {"succeeds_at": 2}, "retry": {"max_attempts": 2, "delay": 0.5}},
            {"id": "below", "type": "workflow", "config": {"workflow": child}, "inputs": ["shaky"]},
            {"id": "gate", "type": "gate", "config": {"gate": child}, "inputs": ["below"]},
        )
        other = system.engine.enqueue_workflow(system.register(*CHAIN), delay=60)
        with ThreadPoolExecutor(1) as pool:  # somebody follows another execution, so workers know
            pool.submit(list, system.engine.events(other, timeout=60))
            time.sleep(1.5)
            monkeypatch.setattr("spanloom.engine.events.stream._POLL_SECONDS", (40.0, 40.0))
            execution_id = system.engine.enqueue_workflow(workflow_id)
            begun = time.monotonic()
            for event in system.engine.events(execution_id, timeout=60):
                if (event.kind, event.node_id) == ("node.started", "gate"):  # nothing else is announced before its end
                    system.open_gate(child)
            assert time.monotonic() - begun < 25
            system.engine.cancel_execution(other)


class TestMistakes:
    def test_an_unknown_execution_is_refused_at_once(self, system: System) -> None:
        with pytest.raises(UnknownExecution, match="no execution"):
            system.engine.events(uuid7())
        with pytest.raises(UnknownExecution, match="no execution 'x'"):
            system.engine.events("x")

    def test_a_bad_cursor_is_named(self, system: System) -> None:
        execution = system.run(system.register(*CHAIN), 7)
        with pytest.raises(ConfigurationError, match="cursor 'nonsense' was not given out"):
            system.engine.events(execution.id, "nonsense")

    def test_the_time_is_limited(self, system: System) -> None:
        gate = system.register({"id": "a", "type": "gate", "config": {"gate": "slow"}})
        execution_id = system.engine.enqueue_workflow(gate)
        system.arrived("slow")
        seen: list[Event] = []
        with pytest.raises(WaitTimeout, match=r"still running after 0\.3 s"):
            seen.extend(system.engine.events(execution_id, timeout=0.3))
        system.open_gate("slow")
        seen += system.engine.events(execution_id, seen[-1].cursor, timeout=30)
        assert seen == stored(system, execution_id)

    def test_a_purged_execution_is_followed_no_more(self, idle_system: System) -> None:
        system = idle_system
        execution_id = system.engine.enqueue_workflow(system.register(*CHAIN), 7)
        events = system.engine.events(execution_id, timeout=30)
        assert next(events).kind == "execution.created"
        system.engine.cancel_execution(execution_id)
        system.engine.purge_executions(0, statuses=["cancelled"])
        with pytest.raises(UnknownExecution):
            list(events)


class TestLeaving:
    def test_who_leaves_early_leaves_no_subscription(self, idle_system: System) -> None:
        system = idle_system
        execution_id = system.engine.enqueue_workflow(system.register(*CHAIN), 7)
        streams = [system.engine.events(execution_id) for _ in range(3)]
        waiting = [threading.Thread(target=list, args=[stream]) for stream in streams[:2]]
        for thread in waiting:
            thread.start()
        _until(lambda: _subscriptions(system) == 2)  # to the end of the execution, and to its changes
        next(streams[2])
        streams[2].close()
        streams[2].close()
        assert list(streams[2]) == []

        with pytest.raises(WaitTimeout):  # its frames are kept by the error; what it watched is not
            list(system.engine.events(execution_id, timeout=0.1))
        system.engine.cancel_execution(execution_id)
        for thread in waiting:
            thread.join(10)
        _until(lambda: _subscriptions(system) == 0)

    def test_a_stream_that_is_dropped_is_left(self, idle_system: System) -> None:
        system = idle_system
        execution_id = system.engine.enqueue_workflow(system.register(*CHAIN), 7)
        history = stored(system, execution_id)
        stream = system.engine.events(execution_id)
        for _ in history:
            next(stream)
        threading.Timer(0.5, system.engine.pause_execution, [execution_id]).start()
        assert next(stream).kind == "execution.paused"
        assert _subscriptions(system) == 2
        del stream
        gc.collect()
        _until(lambda: _subscriptions(system) == 0)

    def test_closing_the_engine_ends_its_thread(self, idle_system: System) -> None:
        system, before = idle_system, set(threading.enumerate())
        execution_id = system.engine.enqueue_workflow(system.register(*CHAIN), 7)
        with pytest.raises(WaitTimeout), system.engine.events(execution_id, timeout=0.2) as events:
            list(events)
        (listener,) = set(threading.enumerate()) - before
        system.engine.close()
        assert not listener.is_alive()


class TestAsync:
    def test_a_hundred_watchers_need_no_thread_each_and_see_everything(self, system: System) -> None:
        workflow_id = system.register(*wide(20))

        async def follow_all() -> tuple[list[list[Event]], int]:
            execution_id = await system.engine.aenqueue_workflow(workflow_id)
            most = 0

            async def follow() -> list[Event]:
                nonlocal most
                seen = []
                async for event in system.engine.aevents(execution_id, timeout=60):
                    seen.append(event)
                    most = max(most, threading.active_count())
                return seen

            return await asyncio.gather(*(follow() for _ in range(100))), most

        before = threading.active_count()
        seen, most = asyncio.run(follow_all())
        history = stored(system, seen[0][0].execution_id)
        assert history[-1].kind == "execution.completed"
        assert [one for one in seen if one != history] == []
        assert most - before < 50

    def test_who_is_cancelled_or_leaves_early_leaves_no_subscription(self, idle_system: System) -> None:
        system = idle_system
        execution_id = system.engine.enqueue_workflow(system.register(*CHAIN), 7)

        async def come_and_go() -> None:
            async def follow() -> None:
                async for _ in system.engine.aevents(execution_id):
                    pass

            tasks = [asyncio.create_task(follow()) for _ in range(20)]
            await asyncio.sleep(0)
            for number, task in enumerate(tasks):
                await asyncio.sleep(0.01 * (number % 3))
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            async with system.engine.aevents(execution_id) as events:
                assert (await anext(events)).kind == "execution.created"

        asyncio.run(come_and_go())
        _until(lambda: _subscriptions(system) == 0)

    def test_mistakes_are_raised_with_the_first_event(self, system: System) -> None:
        async def follow() -> None:
            async for _ in system.engine.aevents(uuid7()):
                pass

        with pytest.raises(UnknownExecution):
            asyncio.run(follow())

    def test_the_handle_follows_too(self, system: System) -> None:
        handle = system.engine.start(system.register(*CHAIN), 7)

        async def follow() -> list[Event]:
            return [event async for event in handle.aevents(timeout=30)]

        assert asyncio.run(follow()) == list(handle.events(timeout=30)) == stored(system, handle.id)


def _subscriptions(system: System) -> int:
    return len(system.redis.pubsub_channels(f"{system.engine.queue.namespace}:*"))  # type: ignore[arg-type]


def _until(true: object, timeout: float = 10) -> None:
    give_up = time.monotonic() + timeout
    while not true():  # type: ignore[operator]
        assert time.monotonic() < give_up
        time.sleep(0.01)
