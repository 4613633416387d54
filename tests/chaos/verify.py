"""The verification: what became of every execution of a scenario, counted, and where it misses the bar."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos.environment import Environment
from chaos.faults import Fault, FlushRedis, ForbidScripts, KillRedis, RefuseRedis, SpoilKeys, StopWorkers
from chaos.history import History, read_history
from chaos.load import acknowledged
from chaos.processes import GroupProcess
from chaos.stalls import harmed_stalls, longest_stalls
from chaos.workflows import workflow_of
from spanloom.engine import Execution

__all__ = ["ScenarioResult", "verify"]

_RECORDED = ("node.completed", "node.failed", "node.skipped")
_ENDED = ("execution.completed", "execution.failed", "execution.cancelled")
_SECONDS_AFTER_LEASE = 5.0
_SECONDS_AFTER_REDIS = 3.0
_REDIS = tuple(fault.name for fault in (FlushRedis, KillRedis, RefuseRedis, ForbidScripts, SpoilKeys))
_DETAILS = 10


@dataclass(frozen=True)
class ScenarioResult:
    """The figures of one scenario. `details` names the first of everything that is wrong."""

    name: str
    asked: int  # executions
    started: int  # acknowledged to an engine's caller
    ended: int
    lost: int  # acknowledged, but not there; or never acknowledged
    doubled: int  # there beyond the first of one idempotency key, or of one node that starts a child
    hung: int  # not ended, children too
    wrong: int  # ended otherwise than foreseen, or with another output
    unrun: int  # results whose handler never ran
    faults: dict[str, int]  # by name
    runs: int  # of handlers
    repeats: int  # of handlers, beyond what the executions take if nothing goes wrong
    taken: int  # node runs that were taken from a worker whose lease had lapsed
    explained: int  # what the faults may have taken, at most
    twice: int  # results or ends that were recorded twice
    refused: int  # writes under a claim that was lost
    still: dict[str, float]  # seconds in which nothing ran, at most, by fault
    harmed: dict[str, float]  # seconds in which one that was harmed did not run, at most, by fault
    lease_seconds: float
    exits: int  # processes that ended by themselves after they had worked, or not with 0
    errors: Counter[str]  # logged by workers, by event
    seconds: float
    settling: float  # seconds from the end of all faults until everything had ended
    details: list[str] = field(default_factory=list)

    def most_seconds(self, fault: str) -> float:
        """Return how long a stall after this fault may be.

        A lost Redis costs no lease if it is the only fault; else what is pushed again may go to a worker that dies.
        """
        alone = len(self.faults) == 1
        return _SECONDS_AFTER_REDIS if alone and fault in _REDIS else self.lease_seconds + _SECONDS_AFTER_LEASE

    def misses(self, *, stalls: bool = True) -> list[str]:
        """Say where it misses the bar."""
        nothing = {
            "lost": self.lost,
            "started twice": self.doubled,
            "hung": self.hung,
            "wrongly ended": self.wrong,
            "results without a run": self.unrun,
            "recorded twice": self.twice,
            "processes that ended by themselves": self.exits,
            "errors in workers' logs": self.errors.total(),
        }
        missed = [f"{what}: {number}" for what, number in nothing.items() if number]
        if self.repeats > self.taken:
            missed.append(f"{self.repeats} handlers ran again, but only {self.taken} runs were taken from a worker")
        if self.taken > self.explained:
            missed.append(f"{self.taken} runs were taken from a worker; the faults explain {self.explained}")
        missed += [f"{name} never happened" for name, times in self.faults.items() if not times]
        if self.faults.get(StopWorkers.name) and not self.refused:
            missed.append("no stale write was refused, though workers were stopped")
        if stalls:
            for what, found in (("nothing ran", self.still), ("a run stood still", self.harmed)):
                missed += [
                    f"{what} for {seconds:.1f} s after {fault}, the bar is {self.most_seconds(fault):g}"
                    for fault, seconds in found.items()
                    if seconds >= self.most_seconds(fault)
                ]
        return missed


def verify(
    name: str,
    environment: Environment,
    faults: Sequence[Fault],
    asked: int,
    unclean: Sequence[tuple[GroupProcess, int]],
    seconds: float,
    settling: float,
) -> ScenarioResult:
    """Compare what the store, the trace log and the logs hold, once all workers have ended."""
    history = read_history(environment)
    started = acknowledged(environment.folder)
    roots = [one for one in history.executions.values() if one.parent_execution_id is None]
    open_ones = [one for one in history.executions.values() if not one.status.ended]
    lost = [str(number) for number, execution_id in started if execution_id not in history.executions]
    lost += [
        f"{number}, never acknowledged" for number in sorted(set(range(asked)) - {number for number, _ in started})
    ]
    wrong = [why for one in roots if one.status.ended and (why := _wrong(one)) is not None]
    twice = _recorded_twice(history)
    doubled = _doubled(history)
    unrun = _unrun(history)
    injected = Counter(injection.fault for injection in environment.injections)
    ended_so = [
        *(
            f"{one.name} ended with {code} by itself, and said last: {one.last_line}"
            for one, code in environment.workers.exits
            if one.ready
        ),
        *(
            f"{one.name} ended with {code} by itself, and said last: {one.last_line}"
            for one, code in environment.engines.exits
        ),
        *(f"{one.name} ended with {code} after SIGTERM" for one, code in unclean if one.ready),
    ]
    logged = Counter(
        line["event"] for one in environment.workers.processes for line in one.lines() if line.get("event")
    )
    expected = frozenset[str]().union(*(fault.expected_errors for fault in faults))
    errors = Counter(
        _error_line(line)
        for process in environment.workers.processes
        if process.ready
        for line in process.lines()
        if line.get("level") in ("error", "critical") and line.get("event") not in expected
    )
    harmed = harmed_stalls(history, environment.injections)
    repeats = len(history.entries) - sum(workflow_of(int(one.metadata["number"])).runs for one in roots)
    return ScenarioResult(
        name=name,
        asked=asked,
        started=len(started),
        ended=sum(one.status.ended for one in roots),
        lost=len(lost),
        doubled=len(doubled),
        hung=len(open_ones),
        wrong=len(wrong),
        unrun=len(unrun),
        faults={fault.name: injected[fault.name] for fault in faults},
        runs=len(history.entries),
        repeats=max(
            0, repeats - _again_by_itself(history) if any(fault.stall_seconds for fault in faults) else repeats
        ),
        taken=sum(
            event.kind == "node.queued" and event.data.get("because") == "lost_worker"
            for events in history.events.values()
            for event in events
        ),
        explained=sum(injected[fault.name] * fault.explains(environment) for fault in faults),
        twice=len(twice),
        refused=logged["claim_lost"],
        still=longest_stalls(history, environment.injections),
        harmed={fault: max(stalls) for fault, stalls in harmed.items()},
        lease_seconds=environment.lease_seconds,
        exits=len(ended_so),
        errors=errors,
        seconds=seconds,
        settling=settling,
        details=[
            *(f"lost: {one}" for one in lost[:_DETAILS]),
            *(_story(one, history) for one in open_ones[:_DETAILS]),
            *doubled[:_DETAILS],
            *wrong[:_DETAILS],
            *unrun[:_DETAILS],
            *twice[:_DETAILS],
            *ended_so[:_DETAILS],
            *_last_to_end(history, environment.lease_seconds + _SECONDS_AFTER_LEASE, settling),
            *(f"logged {times} times: {event}" for event, times in errors.most_common(_DETAILS)),
        ],
    )


def _again_by_itself(history: History) -> int:
    """Return how many runs were begun again after a timeout, or were given back by a worker that gave up."""
    return sum(
        event.kind == "node.retrying" and event.data.get("error", {}).get("type") == "NodeTimeout"
        for events in history.events.values()
        for event in events
    ) + sum(event.kind == "node.released" for events in history.events.values() for event in events)


def _error_line(line: dict[str, Any]) -> str:
    """Return a logged error with what raised it."""
    raised = str(line.get("exception", "")).strip().splitlines()
    at = [one.strip() for one in raised if one.strip().startswith("File ")][-1:]
    return " | ".join([str(line.get("event")), *raised[-1:], *at])


def _wrong(execution: Execution) -> str | None:
    number = int(execution.metadata["number"])
    workflow = workflow_of(number)
    if execution.status is not workflow.status:
        return (
            f"{workflow.id} {number}, {execution.id}, is {execution.status}, not {workflow.status}: {execution.error}"
        )
    if workflow.value is None:
        error = execution.error or {}
        as_foreseen = (error.get("node_id"), error.get("type")) == ("refuse", "PermanentError")
        return None if as_foreseen else f"{workflow.id} {number}, {execution.id}, failed for another reason: {error}"
    made = (execution.output or {}).get("value")
    wanted = workflow.value(number)
    return None if made == wanted else f"{workflow.id} {number}, {execution.id}, made {made}, not {wanted}"


def _doubled(history: History) -> list[str]:
    """Name executions beyond the first that were started for the same reason."""
    reasons: dict[tuple[str | None, ...], list[str]] = defaultdict(list)
    for one in history.executions.values():
        asker = (one.parent_execution_id, one.parent_node_id) if one.parent_execution_id else (one.metadata["number"],)
        reasons[asker].append(_story(one, history))
    return [f"{asker} started {stories}" for asker, stories in reasons.items() if len(stories) > 1]


def _recorded_twice(history: History) -> list[str]:
    """Name what was recorded more than once: by the events, and by what later handlers were given."""
    found: list[str] = []
    for execution_id, events in history.events.items():
        times = Counter((event.node_id, event.item) for event in events if event.kind in _RECORDED)
        found += [f"{execution_id}: {run} was recorded {n} times" for run, n in times.items() if n > 1]
        ends = sum(event.kind in _ENDED for event in events)
        if ends > 1:
            found.append(f"{execution_id} ended {ends} times")
    seen: dict[tuple[str, str], set[str]] = defaultdict(set)
    for entry in history.entries:
        for source, mark in entry.saw.items():
            seen[entry.execution_id, source].add(mark)
    found += [f"{run} was seen with {len(marks)} results" for run, marks in seen.items() if len(marks) > 1]
    return found


def _unrun(history: History) -> list[str]:
    """Name results that no run of a handler made: those seen by later handlers, and those of executions."""
    made = {entry.mark for entry in history.entries}
    found = [
        f"{entry.execution_id}: {entry.node_id} was given a result of {source} that nobody made"
        for entry in history.entries
        for source, mark in entry.saw.items()
        if mark not in made
    ]
    for execution in history.executions.values():
        if execution.output is not None and execution.output.get("mark") not in made:
            found.append(f"{execution.id} has an output that nobody made")
    return found


def _last_to_end(history: History, limit: float, settling: float) -> list[str]:
    """Tell of the execution that ended last, if that took longer than it should."""
    ended = [one for one in history.executions.values() if one.ended_at is not None]
    if settling < limit or not ended:
        return []
    last = max(ended, key=lambda one: one.ended_at or one.created_at)
    return [f"{settling:.1f} s after the last fault: {_story(last, history)}"]


def _story(execution: Execution, history: History) -> str:
    """Tell what happened last to an execution."""
    events = [
        f"{event.at:%H:%M:%S.%f} {event.kind} {event.node_id or ''} {event.data.get('because', '')}".rstrip()
        for event in history.events[execution.id]
    ]
    return f"{execution.workflow_id} {execution.id} is {execution.status}; last: " + ", ".join(events[-8:])
