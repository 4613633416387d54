"""The notes beside a node run: the reason why it was not taken, its wait, and how its failure was handled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from rich.text import Text

from spanloom.cli.rendering.values import ago, error_sentence, instant
from spanloom.engine.escaping import escaped
from spanloom.engine.store.models import NodeRun
from spanloom.engine.store.states import NodeStatus, WaitKind
from spanloom.engine.workflow.definitions import Input, Node

__all__ = ["READY", "Note", "counted", "drawn", "is_handled", "routing_notes", "run_notes"]

Note = tuple[str, str]  # a text and its style

READY = frozenset({"queued", "held"})  #: in these states no time is shown: it would be that of an earlier claim

_NAMED = 3  # how many nodes a note names before it counts them
_CONDITION_WIDTH = 40
_WORKER_WIDTH = 8  # the end of a worker's id distinguishes it from the others
_SOON_SECONDS = 60  # a wait that ends sooner needs no time of day
_ORDER = ("running", "waiting", "queued", "held", "failed", "skipped", "cancelled")
_FOLLOWED = {NodeStatus.COMPLETED: ("success", "always"), NodeStatus.FAILED: ("failure", "always")}


def routing_notes(node: Node, run: NodeRun | None, runs: Mapping[str, NodeRun], *, whole: bool = False) -> list[Note]:
    """Describe the sources of a node with their conditions, or the parents that did not lead to it.

    `runs` are the runs of all nodes, by id. `whole`: long lists and conditions are not cut.
    """
    notes: list[Note] = []
    edges = [edge for edge in node.inputs if edge.node in node.parents]
    if len(node.parents) > 1 or any(edge.on != "success" or edge.when for edge in edges):
        texts = list(dict.fromkeys(_edge(edge, whole=whole) for edge in edges))
        notes.append((f"← {', '.join(texts)}" if whole or len(texts) <= _NAMED else f"← {len(texts):,} nodes", ""))
    if run is not None and run.status is NodeStatus.SKIPPED and run.started_at is None:
        # Where all parents were skipped themselves, the decision was taken further up, and is shown there.
        decided = [name for name in node.parents if name in runs and _led_past(runs[name], node)]
        if decided:
            notes.append((f"not taken by {_listed(decided, whole=whole)}", ""))
    return notes


def run_notes(run: NodeRun, now: datetime | None) -> Iterator[Note]:
    """Describe a run: its attempts, recoveries, wait, worker and error, and how its failure was handled.

    Times are relative to `now`. Without `now` they are instants, and attempts, recoveries, worker and error are left
    out.
    """
    if now is not None and run.attempt > 1:
        yield f"attempt {run.attempt}", "yellow"
    if now is not None and run.recovery_attempts:
        yield f"{run.recovery_attempts} lost", "yellow"
    if waits := _wait(run, now):
        yield waits, "yellow"
    if now is not None and run.worker_id:
        yield run.worker_id[-_WORKER_WIDTH:], ""
    if is_handled(run):
        yield f"handled, went on to {_listed(run.taken, whole=now is None)}" if run.taken else "handled", "yellow"
    if now is not None and run.error is not None:
        yield escaped(error_sentence(run.error)), "" if is_handled(run) else "red"


def is_handled(run: NodeRun) -> bool:
    """Return whether a run failed and its failure was handled: only then it has data for its successors."""
    return run.status is NodeStatus.FAILED and (run.data is not None or run.data_size is not None)


def counted(items: Sequence[NodeRun], total: int | None) -> str:
    """Describe the progress of a mapped node: `97/100 completed, 2 running`; without the total while unknown."""
    states = Counter(run.status.value for run in items)
    of = "" if total is None else f"/{max(total, len(items)):,}"
    parts = [f"{states['completed']:,}{of} completed"]
    return ", ".join(parts + [f"{states[status]:,} {status}" for status in _ORDER if states[status]])


def drawn(notes: Sequence[Note]) -> Text:
    """Return notes as one line, which is cut where the terminal ends."""
    text = Text("  ").join([Text(note, style) for note, style in notes])
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _wait(run: NodeRun, now: datetime | None) -> str:
    if run.status is not NodeStatus.WAITING or run.wait_kind in (None, WaitKind.ITEMS):
        return ""  # the counts of its items show that wait
    if run.due_at is None:
        return f"for {run.wait_kind} {run.wait_key}"
    if now is None:
        return f"{run.wait_kind} until {instant(run.due_at)}"
    seconds = (run.due_at - now).total_seconds()
    if seconds < 0:
        return f"{run.wait_kind} due {ago(run.due_at, now)}"
    when = f", at {instant(run.due_at)}" if seconds >= _SOON_SECONDS else ""
    return f"{run.wait_kind} {ago(run.due_at, now)}{when}"


def _edge(edge: Input, *, whole: bool) -> str:
    on = {"failure": " on failure", "always": " in any case"}.get(edge.on, "")
    if edge.when is None:
        return edge.node + on
    condition = escaped(edge.when)
    if not whole and len(condition) > _CONDITION_WIDTH:
        condition = condition[: _CONDITION_WIDTH - 1] + "…"
    return f"{edge.node}{on} if {condition}"


def _led_past(parent: NodeRun, node: Node) -> bool:
    if parent.status not in _FOLLOWED:
        return False
    if parent.taken is not None:
        return node.id not in parent.taken
    return not any(edge.node == parent.node_id and edge.on in _FOLLOWED[parent.status] for edge in node.inputs)


def _listed(names: Sequence[str], *, whole: bool) -> str:
    return ", ".join(names) if whole or len(names) <= _NAMED else f"{len(names):,} nodes"
