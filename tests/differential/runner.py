"""Runs drawn workflows on real workers, sees how they came out, and compares that with what the reference tells."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jmespath

from differential.app import ROUND, Board, act, make_registry
from differential.differences import differences
from differential.leaping import leaping_store
from differential.reference import ENDED, Reference, Run, Story
from differential.retrying import begun
from differential.workflows import MAIN
from spanloom.engine import Workflow, WorkflowEngine
from spanloom.engine.errors import WaitTimeout

_CREWS = {"one": (1, 1), "pair": (2, 2), "trio": (3, 1), "many": (4, 4)}  # queue: how many workers, with how many slots
_SWEEP_SECONDS = {"one": 0.02, "pair": 0.2, "trio": 0.5, "many": 0.5}  # who sweeps at all sweeps for everyone


class Differs(AssertionError):
    """Say in what an execution differs from the reference, and show the drawn workflow."""


class Runner:
    """A store, a Redis, and workers who run one drawn workflow after the other.

    `changed` is told of each change of the store; with `look_seconds` it is looked at again so often without.
    """

    def __init__(
        self,
        engine: WorkflowEngine,
        board: Board,
        timeout: float,
        changed: threading.Condition,
        look_seconds: float | None = None,
    ) -> None:
        self.engine, self.board, self.timeout = engine, board, timeout
        self._changed, self._look_seconds = changed, look_seconds
        self._numbers = itertools.count(1)

    def check(self, case: dict[str, Any]) -> str:
        """Run a case and compare it, and again after a retry if it failed. Raises Differs; returns how it ended."""
        family = f"f{next(self._numbers)}"
        try:
            return self._check(case, family)
        except Differs as error:
            raise Differs(f"{error}\nthe workflow was:\n{json.dumps(case)}") from None

    def _check(self, case: dict[str, Any], family: str) -> str:
        workflows = {one.id: one for one in _named(case, family)}
        for workflow in workflows.values():
            self.engine.register_workflow(workflow)
        main, data = f"{family}-{MAIN}", case["input"]
        execution_id = self.engine.enqueue_workflow(main, data, metadata={ROUND: family})
        told = Reference(workflows, act, jmespath.search).story(main, data)
        seen = self._settled(execution_id, healed=False)
        self._compare(told, seen, "")
        if seen.status != "failed" or not case["retry"]:
            return seen.status
        self.board.heal(family)
        self.engine.retry_execution(execution_id)
        reference = Reference(workflows, act, jmespath.search, healed=True)
        told = reference.story(main, data, begun(workflows, main, told, seen))
        again = self._settled(execution_id, healed=True)
        self._compare(told, again, " after the retry")
        return f"{again.status} after a retry"

    def _compare(self, told: Story, seen: Story, when: str) -> None:
        if found := list(differences(told, seen)):
            raise Differs(f"execution {seen.id}{when}:\n" + "\n".join(f"- {one}" for one in found))

    def _settled(self, execution_id: str, *, healed: bool) -> Story:
        """Wait until the execution and all its descendants have ended and nothing of them is under way."""
        until = time.monotonic() + self.timeout
        try:
            self.engine.wait(execution_id, timeout=self.timeout)
        except WaitTimeout:
            raise Differs(f"it has not ended after {self.timeout:g} s:\n{self._told_open(execution_id)}") from None
        with self._changed:
            while (seen := self._seen(execution_id, healed)) is None:
                self._changed.wait(self._look_seconds or until - time.monotonic())
                if time.monotonic() > until:
                    raise Differs(f"it does not settle in {self.timeout:g} s:\n{self._told_open(execution_id)}")
        return seen

    def _seen(self, execution_id: str, healed: bool) -> Story | None:
        """Tell the execution as the store has it; None while anything of it may still move without a retry."""
        execution = self.engine.store.get_execution(execution_id)
        assert execution is not None
        error = execution.error or {}
        told_error = (error.get("node_id", "?"), error.get("type", "?")) if execution.error else None
        story = Story(execution.status.value, execution.output, error=told_error, id=execution_id)
        if story.status not in ("completed", "failed"):
            return None
        runs = self.engine.store.get_node_results(execution_id)
        calls = self.board.calls(execution_id, healed)  # looked at later than the runs, which end after their calls
        ended_children: set[str] = set()
        families: dict[tuple[str, int], list[Story]] = {}
        for child in self.engine.store.get_child_executions(execution_id):
            found = self._seen(child.id, healed)
            if found is None:
                return None
            ended_children.add(child.id)
            assert child.parent_node_id is not None
            families.setdefault((child.parent_node_id, child.parent_item or 0), []).append(found)
        for run in runs:
            if run.status in ("queued", "running") or run.wait_key in ended_children:
                return None
            made = Run(
                status=run.status.value,
                data=run.data,
                error=None if run.error is None or run.status not in ENDED else run.error["type"],
                attempt=run.attempt,
                calls=calls.pop((run.node_id, run.item), 0),
                children=families.get((run.node_id, run.item), []),
            )
            if run.item:
                story.runs.setdefault(run.node_id, Run()).items[run.item] = made
            else:
                made.items = story.runs.get(run.node_id, made).items
                story.runs[run.node_id] = made
        for (name, item), count in calls.items():  # of runs that the store knows nothing of
            story.runs.setdefault(f"{name}[{item}]", Run("unknown", calls=count))
        return story

    def _told_open(self, execution_id: str) -> str:
        lines = []
        execution = self.engine.store.get_execution(execution_id)
        for run in self.engine.store.get_node_results(execution_id):
            if run.status not in ENDED:
                waits = f" for {run.wait_kind} {run.wait_key or ''} until {run.due_at}" if run.wait_kind else ""
                lines.append(f"  {run.node_id}[{run.item}] is {run.status}, attempt {run.attempt}{waits}")
        lines.insert(0, f"{execution_id} of {execution and execution.workflow_id} is {execution and execution.status}")
        return "\n".join(
            [*lines, *(self._told_open(child.id) for child in self.engine.store.get_child_executions(execution_id))]
        )


def _named(case: dict[str, Any], family: str) -> Iterator[Workflow]:
    """Give the drawn workflows ids of their own, and their nodes to the queue of those who run them."""
    known = {one["id"] for one in case["workflows"]}
    for one in case["workflows"]:
        nodes = [{**node, "queue": case["crew"]} for node in one["nodes"]]
        for node in nodes:
            if node["config"].get("workflow") in known:
                node["config"] = {**node["config"], "workflow": f"{family}-{node['config']['workflow']}"}
        yield Workflow.model_validate({"id": f"{family}-{one['id']}", "nodes": nodes})


@contextmanager
def runner(store_url: str, redis_url: str, timeout: float = 20.0) -> Iterator[Runner]:
    """Run crews of workers over one store while the block lasts."""
    board = Board()
    store = leaping_store(store_url)
    with ExitStack() as stack:
        engine = stack.enter_context(WorkflowEngine(make_registry(board), store, redis_url))
        for crew, (workers, slots) in _CREWS.items():
            stack.enter_context(
                engine.start_workers(
                    workers, queues=(crew,), concurrency=slots, sweep_seconds=_SWEEP_SECONDS[crew], max_inline_nodes=7
                )
            )
        yield Runner(engine, board, timeout, store.changed)
