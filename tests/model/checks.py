"""Compares what a store says with the model, and says in what they differ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from model.execution import Execution, Run
from model.model import Model
from model.world import open_rows
from spanloom.engine.store.models import Event, NodeRun
from spanloom.engine.store.requests import END, PARENT, START
from spanloom.engine.store.states import ExecutionStatus, NodeStatus

_LAST_EVENTS = {  # of a node run in each status
    NodeStatus.QUEUED: {"node.queued"},
    NodeStatus.HELD: {"node.held"},
    NodeStatus.RUNNING: {"node.started"},
    NodeStatus.WAITING: {"node.waiting", "node.retrying"},
    **{status: {f"node.{status.value}"} for status in NodeStatus if status.ended},
}


class Reader:
    """Reads what a store holds, and remembers how far each execution's events were read."""

    def __init__(self, store: Any, model: Model) -> None:
        self.store, self.model = store, model
        self.rows: dict[str, Any] = {}
        self._events: dict[str, list[Event]] = {}
        self._over: dict[str, Any] = {}  # how what is completed or cancelled was found

    def differences(self, execution_ids: set[str]) -> Iterator[str]:
        """Yield in what these executions, and the counters of all, differ from the model."""
        self.rows = open_rows(self.store)
        for execution in self.model.executions.values():
            if execution.id in execution_ids:
                yield from (f"{execution.workflow.id}: {one}" for one in self._execution_differs(execution))
            yield from (f"{execution.workflow.id}: {one}" for one in self._counters_differ(execution))
        if unknown := self.rows.keys() - self.model.executions.keys():
            yield f"there are rows of executions {unknown}"

    def totals_differ(self) -> Iterator[str]:
        """Yield in what the counts of the whole store differ from the model."""
        stats, now = self.store.stats(), self.store.clock()
        executions = Counter(one.status for one in self.model.executions.values())
        runs = Counter(run.status for one in self.model.executions.values() for run in one.runs.values())
        for one in self.model.executions.values():
            for node in one.inputs:
                row = self.rows.get(one.id, {}).get((node, 0))
                runs[NodeStatus.PENDING] += row is not None and row.status == "pending"
        for status in ExecutionStatus:
            if stats.executions[status] != executions[status]:
                yield f"{stats.executions[status]} executions are {status}, not {executions[status]}"
        for status, count in stats.open_node_runs.items():
            if count != runs[status]:
                yield f"{count} runs are {status}, not {runs[status]}"
        live = {name: len(list(self.model.held_by(name))) for name in self.model.workers if self.model.live(name, now)}
        seen = {lease.worker_id: lease.running for lease in self.store.list_workers()}
        if seen != live or stats.workers != len(live):
            yield f"the live workers hold {seen}, not {live}"
        dues = [due for one in self.model.executions.values() for due in _dues(one)]
        if self.store.next_due() != min(dues, default=None):
            yield f"the next due is {self.store.next_due()}, not {min(dues, default=None)}"

    def _execution_differs(self, execution: Execution) -> Iterator[str]:
        seen = self.store.get_execution(execution.id)
        if seen is None:
            yield "the execution is gone"
            return
        error = None if seen.error is None else (seen.error.get("node_id"), seen.error["type"])
        for what, is_, told in (
            ("status", seen.status, execution.status),
            ("revision", seen.revision, execution.revision),
            ("error", error, execution.error),
            ("output", seen.output, execution.output),
            ("ended_at", seen.ended_at, execution.ended_at),
        ):
            if is_ != told:
                yield f"its {what} is {is_!r}, not {told!r}"
        runs = {(run.node_id, run.item): run for run in self.store.get_node_results(execution.id)}
        for key, run in execution.runs.items():
            found = runs.get(key)
            if found is None:
                yield f"{key} is not there, not {run.status}"
            else:
                yield from (f"{key}: {one}" for one in _run_differs(run, found))
        for key in runs.keys() - execution.runs.keys():
            if runs[key].status is not NodeStatus.PENDING or key[1]:
                yield f"{key} is {runs[key].status}, and is not to be there"
        yield from self._events_differ(execution)
        if execution.status in (ExecutionStatus.COMPLETED, ExecutionStatus.CANCELLED):
            over = (seen.status, seen.output, seen.ended_at, [(key, runs[key].status, runs[key].data) for key in runs])
            if self._over.setdefault(execution.id, over) != over:
                yield f"it was over as {self._over[execution.id]}, and is now {over}"

    def _counters_differ(self, execution: Execution) -> Iterator[str]:
        rows = self.rows.get(execution.id, {})
        for node in execution.inputs:
            pending, taken = execution.counts(node)
            row = rows.get((node, 0))
            if (node, 0) in execution.runs:
                continue
            if row is None:
                if pending != len(execution.inputs[node]):
                    yield f"{node} has no row, and waits for {pending} inputs"
            elif (row.status, row.pending, row.taken) != ("pending", pending, taken):
                yield f"{node} is {row.status}, {row.pending} open and {row.taken} taken, not {pending} and {taken}"
        for key, run in execution.runs.items():
            row = rows.get(key)
            if (row is None) != run.status.ended:
                yield f"{key} is {run.status} and its row is {row}"
            elif row is not None and run.fan_out is None and row.pending:
                yield f"{key} is {run.status} and its row waits for {row.pending} inputs"
        began = execution.starts_at is None and execution.status not in (
            ExecutionStatus.COMPLETED,
            ExecutionStatus.CANCELLED,
        )
        end = rows.get((END, 0))
        left = sum(not execution.arrived(sink) for sink in execution.sinks)
        if (end is not None) != began:
            yield f"it is {execution.status} and {'has' if end is not None else 'has no'} $end"
        elif end is not None and (end.pending, end.due_at) != (left, execution.deadline):
            yield f"$end waits for {end.pending} sinks until {end.due_at}, not {left} until {execution.deadline}"
        for name, due in ((START, execution.starts_at), (PARENT, execution.word_due)):
            row = rows.get((name, 0))
            if (None if row is None else row.due_at) != due:
                yield f"{name} is {row}, not due at {due}"

    def _events_differ(self, execution: Execution) -> Iterator[str]:
        events = self._events.setdefault(execution.id, [])
        events += self.store.get_events(execution.id, after=events[-1].cursor if events else None)
        history = [event.kind.removeprefix("execution.") for event in events if event.node_id is None]
        if history != execution.history:
            yield f"its history is {history}, not {execution.history}"
        last = {(event.node_id, event.item): event.kind for event in events if event.node_id is not None}
        for key, run in execution.runs.items():
            if last.get(key) not in _LAST_EVENTS[run.status]:
                yield f"{key} is {run.status}, and the last that was told of it is {last.get(key)}"


def _run_differs(run: Run, seen: NodeRun) -> Iterator[str]:
    error = None if seen.error is None else json.dumps(seen.error)
    waits = run.status is NodeStatus.WAITING
    told: list[tuple[str, Any, Any]] = [
        ("status", seen.status, run.status),
        ("attempt", seen.attempt, run.attempt),
        ("recovery_attempts", seen.recovery_attempts, run.recovery_attempts),
        ("worker", seen.worker_id, run.holder),
        ("data", seen.data, None if run.data is None else json.loads(run.data)),
        ("error", error, run.error),
        ("ended_at", seen.ended_at, run.ended_at),
        ("wait", (seen.wait_kind, seen.wait_key), run.wait if waits and run.wait else (None, None)),
    ]
    if run.status in (NodeStatus.COMPLETED, NodeStatus.FAILED):
        told.append(("taken", seen.taken, run.taken))
    if run.status is not NodeStatus.QUEUED:
        told.append(("due_at", seen.due_at, run.due))
    elif seen.due_at is None:
        yield "it is queued, and no sweep will look at it"
    yield from (f"its {what} is {is_!r}, not {should!r}" for what, is_, should in told if is_ != should)


def _dues(execution: Execution) -> Iterator[Any]:
    yield from (due for due in (execution.starts_at, execution.deadline, execution.word_due) if due is not None)
    yield from (run.due for run in execution.runs.values() if run.due is not None)
