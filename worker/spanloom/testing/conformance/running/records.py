"""Conformance: recording outcomes, with their consequences."""

from __future__ import annotations

from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import LogLine, Outcome, Priority, RecordResult, SpanLine
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import after_any_end, chain, diamond, fan, graph, route_failure, single

__all__ = ["Records"]


class Records:
    """`record` of a completed or released run: the result row, its successors, the end."""

    def test_a_completed_run_keeps_its_result(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        started = clock()
        node = driver.claim(execution, "only")
        clock.advance(2)
        answer = driver.record(execution, node, data={"ok": True})
        ended_at = clock()
        assert answer == RecordResult(True, answer.jobs, (), ExecutionStatus.COMPLETED, ended_at)
        assert list(answer.jobs) == []
        (run,) = store.get_node_results(execution)
        assert (run.status, run.data, run.error) == (NodeStatus.COMPLETED, {"ok": True}, None)
        assert (run.attempt, run.recovery_attempts, run.worker_id) == (1, 0, driver.worker_id)
        assert (run.started_at, run.ended_at, run.due_at) == (started, clock(), None)

    def test_the_only_sink_gives_the_output(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(diamond())
        driver.drain(lambda node: {"by": node.node_id})
        found = store.get_execution(execution)
        assert found is not None
        assert (found.status, found.output, found.ended_at) == (
            ExecutionStatus.COMPLETED,
            {"by": "bottom"},
            clock(),
        )

    def test_several_sinks_give_the_output_by_node(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(graph("sinks", {"a": [], "b": ["a"], "c": ["a"], "alone": []}))
        driver.drain(lambda node: None if node.node_id == "c" else node.node_id)
        found = store.get_execution(execution)
        assert found is not None
        assert found.output == {"b": "b", "c": None, "alone": "alone"}

    def test_a_ready_successor_is_answered_as_a_job(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(chain(2, queue="q"), priority=Priority.HIGH)
        node = driver.claim(execution, "n1")
        clock.advance(1)
        (job,) = driver.record(execution, node).jobs
        assert (job.execution_id, job.node_id, job.item, job.node_type) == (execution, "n2", 0, "work")
        assert (job.queue, job.priority, job.push, job.pushed_at) == ("q", "high", 1, clock())
        (run,) = store.get_node_results(execution, ["n2"])
        assert run.status is NodeStatus.QUEUED

    def test_the_first_ready_of_the_named_successors_is_claimed_at_once(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(fan(3))
        answer = driver.run(execution, "split", data=5, successors=("join", "w2", "w1"))
        assert answer.next is not None
        assert (answer.next.node_id, answer.next.item, answer.next.attempt) == ("w2", 0, 1)
        assert dict(answer.next.results) == {"split": "5"}
        assert sorted(job.node_id for job in answer.jobs) == ["w1", "w3"]
        (run,) = store.get_node_results(execution, ["w2"])
        assert (run.status, run.worker_id, run.due_at) == (NodeStatus.RUNNING, driver.worker_id, None)
        assert driver.record(execution, answer.next).recorded

    def test_several_of_the_named_successors_are_claimed_at_once(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(fan(5))
        split = driver.claim(execution, "split")
        wished = ("w4", "join", "w2", "w1")
        request = driver.outcome(execution, split, data=5, successors=wished, most_following=2)
        answer = driver.send(request)
        assert [(node.node_id, node.fence, dict(node.results)) for node in answer.following] == [
            ("w4", 1, {"split": "5"}),
            ("w2", 1, {"split": "5"}),
        ]
        assert sorted(job.node_id for job in answer.jobs) == ["w1", "w3", "w5"]
        rows = {run.node_id: run for run in store.get_node_results(execution)}
        assert [rows[f"w{number}"].status for number in range(1, 6)] == [
            *(NodeStatus.QUEUED, NodeStatus.RUNNING, NodeStatus.QUEUED, NodeStatus.RUNNING, NodeStatus.QUEUED)
        ]
        assert (rows["w4"].worker_id, rows["w4"].due_at, rows["w1"].worker_id) == (driver.worker_id, None, None)
        kinds = [(event.kind, event.node_id) for event in store.get_events(execution)]
        started = [("node.started", "w2"), ("node.started", "w4")]
        assert kinds[-5:] == [*started, *(("node.queued", f"w{number}") for number in (1, 3, 5))]
        again = driver.send(request)
        assert sorted(node.node_id for node in again.following) == ["w2", "w4"]
        assert sorted(job.node_id for job in again.jobs) == ["w1", "w3", "w5"]
        for node in answer.following:
            assert driver.record(execution, node).recorded
        driver.drain()
        found = store.get_execution(execution)
        assert found is not None
        assert found.status is ExecutionStatus.COMPLETED

    def test_of_several_a_join_that_has_all_its_inputs_is_claimed_too(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(graph("beside", {"a": [], "b": [], "join": ["a", "b"], "c": ["b"], "d": ["b"]}))
        driver.run(execution, "a", data="a")
        node = driver.claim(execution, "b")
        answer = driver.send(driver.outcome(execution, node, data="b", successors=("c", "join", "d"), most_following=2))
        assert [(node.node_id, dict(node.results)) for node in answer.following] == [
            ("c", {"b": '"b"'}),
            ("join", {"a": '"a"', "b": '"b"'}),
        ]
        assert [job.node_id for job in answer.jobs] == ["d"]

    def test_a_worker_without_a_lease_is_given_none_of_several(self, driver: StoreDriver, clock: ManualClock) -> None:
        execution = driver.start(fan(3))
        node = driver.claim(execution, "split")
        clock.advance(3600)
        answer = driver.send(driver.outcome(execution, node, successors=("w1", "w2", "w3"), most_following=3))
        assert (answer.recorded, list(answer.following)) == (True, [])
        assert sorted(job.node_id for job in answer.jobs) == ["w1", "w2", "w3"]

    def test_a_wish_counts_before_a_later_one_also_behind_what_is_skipped(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(
            graph("late", {"a": [], "b": [route_failure("a")], "c": ["b"], "d": ["a", after_any_end("c")], "e": ["a"]})
        )
        answer = driver.run(execution, "a", successors=("d", "e"))
        assert answer.next is not None
        assert answer.next.node_id == "d"
        assert [job.node_id for job in answer.jobs] == ["e"]
        kinds = [(event.kind, event.node_id) for event in store.get_events(execution)]
        skipped = [("node.skipped", "b"), ("node.skipped", "c")]
        assert kinds[-4:] == [*skipped, ("node.started", "d"), ("node.queued", "e")]

    def test_a_successor_that_was_not_named_is_not_claimed(self, driver: StoreDriver) -> None:
        execution = driver.start(fan(2))
        answer = driver.run(execution, "split")
        assert answer.next is None
        assert sorted(job.node_id for job in answer.jobs) == ["w1", "w2"]

    def test_a_successor_on_another_queue_is_pushed_and_not_claimed(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        workflow = graph("queues", {"a": [], "far": ["a"], "near": ["a"]})
        far = workflow.nodes[1].model_copy(update={"queue": "elsewhere"})
        execution = driver.start(workflow.model_copy(update={"nodes": (workflow.nodes[0], far, workflow.nodes[2])}))
        answer = driver.run(execution, "a", successors=("far", "near"))
        assert answer.next is not None
        assert answer.next.node_id == "near"
        assert [(job.node_id, job.queue) for job in answer.jobs] == [("far", "elsewhere")]

    def test_a_join_claimed_at_once_has_all_results(self, driver: StoreDriver) -> None:
        execution = driver.start(diamond())
        driver.run(execution, "top")
        driver.run(execution, "left", data="l")
        answer = driver.run(execution, "right", data="r", successors=("bottom",))
        assert answer.next is not None
        assert dict(answer.next.results) == {"left": '"l"', "right": '"r"'}

    def test_logs_and_spans_come_with_the_record(
        self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock
    ) -> None:
        execution = driver.start(single())
        logs = [
            LogLine("info", "one", clock(), '{"n": 1}'),
            LogLine("error", "two", clock(), attempt=3, trace_id="a" * 32),
        ]
        span = SpanLine("a" * 32, "b" * 16, None, "only", "consumer", "ok", 1, 2, "only", 0, 1, '{"k": [1]}')
        driver.run(execution, "only", logs=logs, spans=[span])
        stored = store.get_logs(execution)
        assert [(log.message, log.level, log.node_id, log.item) for log in stored] == [
            ("one", "info", "only", 0),
            ("two", "error", "only", 0),
        ]
        assert [(log.fields, log.attempt, log.trace_id) for log in stored] == [({"n": 1}, 1, None), ({}, 3, "a" * 32)]
        (trace,) = store.get_trace(execution)
        assert (trace.span_id, trace.name, trace.attributes, trace.end_ns) == ("b" * 16, "only", {"k": [1]}, 2)

    def test_a_run_given_back_is_queued_again_and_costs_no_attempt(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        execution = driver.start(single())
        (job,) = driver.run(execution, "only", Outcome.RELEASED).jobs
        assert (job.node_id, job.push) == ("only", 2)
        (run,) = store.get_node_results(execution)
        assert (run.status, run.attempt, run.recovery_attempts) == (NodeStatus.QUEUED, 1, 0)
        assert driver.claim(execution, "only").attempt == 1

    def test_a_run_may_wait_for_a_timer(self, store: ExecutionStore, driver: StoreDriver, clock: ManualClock) -> None:
        execution = driver.start(single())
        answer = driver.run(
            execution, "only", Outcome.WAITING, wait_kind=WaitKind.TIMER, wait_key="tea", delay_seconds=30
        )
        assert answer.recorded
        assert list(answer.jobs) == []
        (run,) = store.get_node_results(execution)
        assert (run.status, run.wait_kind, run.wait_key) == (NodeStatus.WAITING, WaitKind.TIMER, "tea")
        assert run.due_at is not None
        assert (run.due_at - clock()).total_seconds() == 30
        assert store.get_events(execution)[-1].kind == "node.waiting"

    def test_no_records_have_no_answers(self, store: ExecutionStore) -> None:
        assert store.record([]) == []

    def test_the_open_runs_are_counted_until_they_end(self, store: ExecutionStore, driver: StoreDriver) -> None:
        driver.start(chain(3))
        driver.drain()
        stats = store.stats()
        assert sum(stats.open_node_runs.values()) == 0
        assert stats.executions[ExecutionStatus.COMPLETED] == 1
