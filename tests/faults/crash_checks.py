"""What must hold after a play: every execution ended as it should, and every node run was recorded once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from faults.crash_system import Played
from faults.crash_workflows import CHILD, RUNS, WORKFLOWS, Run
from faults.effects import World
from spanloom.engine.store.models import Event
from spanloom.engine.store.port import ExecutionStore

_BUILT_IN = ("workflow", "delay")
_NODE_ENDS = ("node.completed", "node.failed", "node.skipped", "node.cancelled")
_EXECUTION_ENDS = ("execution.completed", "execution.failed", "execution.cancelled")
_NODES = {(workflow.id, node.id): node for workflow in WORKFLOWS for node in workflow.nodes}


def look(played: Played, store: ExecutionStore, world: World) -> None:
    """Note what is wrong with the play."""
    played.wrong += _wrong(played, store, world)


def _wrong(played: Played, store: ExecutionStore, world: World) -> Iterator[str]:
    expected: dict[str, tuple[str, Run]] = {played.ids[name]: (name, run) for name, run in RUNS.items()}
    if len(expected) < len(RUNS):
        yield f"two starts were the same execution: {played.ids}"
    children = store.get_child_executions(played.ids["family"])
    expected |= {child.id: (f"child of {child.parent_node_id}", CHILD) for child in children}
    if sorted(child.parent_node_id or "" for child in children) != ["daughter", "son"]:
        yield f"the family has children of {[child.parent_node_id for child in children]}"
    found = {execution.id for execution in store.list_executions(limit=1000).items}
    if found != set(expected):
        yield f"{len(found - set(expected))} executions were started twice, {len(set(expected) - found)} never"
    calls = Counter((call.execution_id, call.node_id, call.item) for call in world.calls())
    keyed = world.keyed()
    if again := {run: count for run, count in keyed.items() if count > 1}:
        yield f"effects that had a key happened again: {again}"
    acted: set[tuple[str, str, int]] = set()
    for execution_id, (name, run) in expected.items():
        yield from (f"{name}: {wrong}" for wrong in _wrong_end(store, execution_id, run))
        yield from (f"{name}: {wrong}" for wrong in _wrong_events(store, execution_id, run))
        runs = _handled(run)
        acted |= {(execution_id, *one) for one in runs}
        for node_id, item in runs:
            if not calls[execution_id, node_id, item] or not keyed[execution_id, node_id, item]:
                yield f"{name}: {node_id}.{item} was recorded, and its handler never called"
    if unknown_types := (set(calls) | set(keyed)) - acted:
        yield f"handlers ran that should not: {unknown_types}"


def _wrong_end(store: ExecutionStore, execution_id: str, run: Run) -> Iterator[str]:
    execution = store.get_execution(execution_id)
    if execution is None:
        yield "it is not there"
        return
    error = None if execution.error is None else execution.error["type"]
    if (execution.status.value, execution.output, error) != (run.status, run.output, run.error):
        yield f"it is {execution.status} with {execution.output!r} and {execution.error}"
    stands = {(one.node_id, one.item): one.status.value for one in store.get_node_results(execution_id)}
    wanted = _wanted(run)
    if stands.keys() != wanted.keys() or any(one not in wanted[key].split(" or ") for key, one in stands.items()):
        yield f"its nodes stand otherwise: {set(stands.items()) ^ set(wanted.items())}"


def _wrong_events(store: ExecutionStore, execution_id: str, run: Run) -> Iterator[str]:
    rounds: list[list[Event]] = [[]]
    for event in store.get_events(execution_id):
        if event.kind == "execution.retried":
            rounds.append([])
        rounds[-1].append(event)
    begins = Counter(event.kind for event in rounds[0])
    if (begins["execution.created"], begins["execution.started"]) != (1, 1):
        yield f"it began more or less than once: {begins}"
    if len(rounds) != run.rounds:
        yield f"it was retried {len(rounds) - 1} times"
    for number, events in enumerate(rounds, 1):
        ends = [event.kind for event in events if event.kind in _EXECUTION_ENDS]
        wanted = f"execution.{run.status}" if number == len(rounds) else "execution.failed"
        if ends != [wanted]:
            yield f"round {number} has these ends: {ends}"
        recorded = Counter((event.node_id, event.item) for event in events if event.kind in _NODE_ENDS)
        if again := {one: count for one, count in recorded.items() if count > 1}:
            yield f"round {number} recorded {again}"
    recorded_at_all = {(event.node_id, event.item) for events in rounds for event in events if event.kind in _NODE_ENDS}
    ended = {one for one, status in _wanted(run).items() if f"node.{status}" in _NODE_ENDS}
    if recorded_at_all != ended:
        yield f"events and results differ in {recorded_at_all ^ ended}"


def _wanted(run: Run) -> dict[tuple[str, int], str]:
    items = {
        (node_id, item): status
        for node_id, status in run.nodes.items()
        if _NODES[run.workflow_id, node_id].map is not None
        for item in range(1, run.items + 1)
    }
    return items | {(node_id, 0): status for node_id, status in run.nodes.items()}


def _handled(run: Run) -> set[tuple[str, int]]:
    """Name the node runs whose handlers must have been called: not those of built-in types, nor of mapped nodes."""
    return {
        (node_id, item)
        for (node_id, item), status in _wanted(run).items()
        if status in ("completed", "failed")
        and (node := _NODES[run.workflow_id, node_id]).type not in _BUILT_IN
        and (item > 0 or node.map is None)
    }
