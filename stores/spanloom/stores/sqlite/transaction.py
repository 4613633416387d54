"""One write transaction on SQLite: its clock, the rows it reads and moves, and what it appends at its end."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from spanloom.engine.store.requests import LogLine, NodeClaim, NodeJob, NodeKey, SpanLine
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind, check_node_transition
from spanloom.stores.schema import FENCES_A_REVISION, from_micros, to_micros

__all__ = ["Graph", "GraphEdge", "Run", "Transaction", "record_reference"]

SUSPECT_MICROS = 2_000_000  #: when a sweep first looks at a queued run


class GraphEdge(NamedTuple):
    """What transitions need to know of one edge."""

    target: str
    kind: str
    target_type: str
    target_queue: str
    target_inputs: int


Graph = Mapping[str, Sequence[GraphEdge]]  #: edges by source; immutable per (workflow, version)


class Run(NamedTuple):
    """One open node run with what transitions need of its execution and of its worker's lease."""

    execution_id: str
    node_id: str
    item: int
    status: str
    node_type: str
    queue: str
    priority: str
    fence: int
    attempt: int
    recovery_attempts: int
    worker_id: str | None
    push: int
    pushed_epoch: int
    pushed_at: int | None
    started_at: int | None
    wait_kind: str | None
    wait_key: str | None
    claim_reference: str | None
    span: str | None
    workflow_id: str
    version: int
    execution_status: str
    revision: int
    parent_id: str | None  # the execution that its execution is a child of
    lease_until: int | None  # None: no worker, or its lease was released

    @property
    def first_fence(self) -> int:
        """The fence that a run of this execution has before its first claim."""
        return self.revision * FENCES_A_REVISION

    @property
    def by(self) -> str:
        """What names this run's claim in all that its record makes ready or ends."""
        return record_reference(self.node_id, self.item, self.fence)


_LOAD = """
SELECT r.execution_id, r.node_id, r.item, r.status, r.node_type, r.queue, r.priority, r.fence, r.attempt,
       r.recovery_attempts, r.worker_id, r.push, r.pushed_epoch, r.pushed_at, r.started_at, r.wait_kind, r.wait_key,
       r.claim_reference, r.span, e.workflow_id, e.version, e.status, e.revision, e.parent_id,
       CASE WHEN w.released_at IS NULL THEN w.lease_until END
FROM node_runs r JOIN executions e ON e.id = r.execution_id LEFT JOIN workers w ON w.id = r.worker_id
WHERE r.execution_id = ? AND r.node_id = ? AND r.item = ?
"""

_EDGES = """
SELECT source, target, kind, target_type, target_queue, target_inputs
FROM workflow_edges WHERE workflow_id = ? AND version = ? ORDER BY source, target
"""

# Without statistics SQLite would rather read every edge of the version by the primary key.
_PARENTS = """
SELECT edge.source, coalesce(result.data, 'null'), result.span
FROM workflow_edges AS edge INDEXED BY workflow_edges_target
JOIN node_results result ON result.execution_id = ? AND result.node_id = edge.source AND result.item = 0
WHERE edge.workflow_id = ? AND edge.version = ? AND edge.target = ?
  AND CASE
        WHEN result.status = 'skipped' THEN 0
        WHEN result.taken IS NOT NULL THEN EXISTS (SELECT 1 FROM json_each(result.taken) WHERE value = edge.target)
        WHEN result.status = 'completed' THEN edge.kind IN ('success', 'always')
        WHEN result.status = 'failed' THEN edge.kind IN ('failure', 'always')
        ELSE 0
      END
ORDER BY edge.source
"""

_ITEM = "SELECT data FROM node_items WHERE execution_id = ? AND node_id = ? AND item = ?"

# What woke a run is kept until its next record, but for a retry.
_REQUEUE = """
UPDATE node_runs SET status = 'queued', worker_id = NULL, claim_reference = ?, wait_kind = nullif(wait_kind, 'retry'),
       recovery_attempts = ?, push = ?, pushed_epoch = ?, pushed_at = ?, due_at = ?
WHERE execution_id = ? AND node_id = ? AND item = ? AND status IN ('queued', 'running', 'waiting')
"""

_HOLD = """
UPDATE node_runs SET status = 'held', worker_id = NULL, claim_reference = NULL, wait_kind = nullif(wait_kind, 'retry'),
       recovery_attempts = ?, attempt = ?, due_at = NULL
WHERE execution_id = ? AND node_id = ? AND item = ? AND status IN ('queued', 'running', 'waiting')
"""

_ADD_RESULT = """
INSERT INTO node_results (execution_id, node_id, item, node_type, status, data, error, taken, arrived, attempt,
       recovery_attempts,
                          fence, push, worker_id, span, started_at, ended_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

# Writers take turns, so the highest number plus one is free, and readers see the numbers in commit order.
_ADD_EVENT = """
INSERT INTO events (execution_id, seq, kind, node_id, item, attempt, worker_id, data, at)
VALUES (?, (SELECT coalesce(max(seq), 0) + 1 FROM events WHERE execution_id = ?), ?, ?, ?, ?, ?, ?, ?)
"""

_ADD_LOG = """
INSERT INTO logs (execution_id, id, node_id, item, attempt, level, message, fields, at, trace_id, span_id)
VALUES (?, (SELECT coalesce(max(id), 0) + 1 FROM logs WHERE execution_id = ?), ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

_ADD_SPAN = """
INSERT OR REPLACE INTO spans (execution_id, span_id, trace_id, parent_span_id, node_id, item, attempt, name, kind,
                              status, start_ns, end_ns, attributes, links)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


class Transaction:
    """Be one write transaction. Results, events, logs and spans are kept back and written together by `flush`."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        graphs: MutableMapping[tuple[str, int], Graph],
        *,
        now: int,
        epoch: int = 0,
    ) -> None:
        self.execute = connection.execute
        self.executemany = connection.executemany
        self.now = now  # microseconds
        self.epoch = epoch
        self.results: list[tuple[Any, ...]] = []
        self._graphs = graphs
        self._events: list[tuple[Any, ...]] = []

    def load(self, execution_id: str, node_id: str, item: int) -> Run | None:
        """Read one open node run; None if it has ended or never was."""
        row = self.execute(_LOAD, (execution_id, node_id, item)).fetchone()
        return None if row is None else Run._make(row)

    def graph(self, workflow_id: str, version: int) -> Graph:
        """Return the edges of a version, which never change once they are saved."""
        key = (workflow_id, version)
        found = self._graphs.get(key)
        if found is None:
            by_source: dict[str, list[GraphEdge]] = {}
            for source, *edge in self.execute(_EDGES, key):
                by_source.setdefault(source, []).append(GraphEdge(*edge))
            found = self._graphs[key] = by_source
        return found

    def parents(
        self, execution_id: str, workflow_id: str, version: int, node_id: str
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Return the data, as JSON text, and the spans of those parents whose edge to the node was taken."""
        self.flush_results()
        rows = self.execute(_PARENTS, (execution_id, workflow_id, version, node_id)).fetchall()
        return {node: data for node, data, _ in rows}, {node: span for node, _, span in rows if span is not None}

    def node_claim(self, run: Run, fence: int) -> NodeClaim:
        """Describe a claim of a run under a fence, with what it works on."""
        if run.item:
            results: dict[str, str] = {}
            spans: dict[str, str] = {}
            (data,) = self.execute(_ITEM, (run.execution_id, run.node_id, run.item)).fetchone()
        else:
            results, spans = self.parents(run.execution_id, run.workflow_id, run.version, run.node_id)
            data = None
        woken = None if run.wait_kind is None else WaitKind(run.wait_kind)
        return NodeClaim(
            run.node_id, run.item, run.node_type, run.queue, fence, run.attempt, run.recovery_attempts, results,
            data, woken,
            None if woken is None else run.wait_key, run.span, spans,
        )  # fmt: skip

    def event(
        self,
        execution_id: str,
        kind: str,
        key: NodeKey | Run | None = None,
        *,
        attempt: int | None = None,
        worker_id: str | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Append a line to the execution's history."""
        node_id, item = (None, 0) if key is None else (key.node_id, key.item)
        text = None if data is None else json.dumps(data)
        self._events.append((execution_id, execution_id, kind, node_id, item, attempt, worker_id, text, self.now))

    def telemetry(self, key: NodeKey | Run, logs: Sequence[LogLine], spans: Sequence[SpanLine]) -> None:
        """Store the log lines and spans that came with a record."""
        execution_id, node_id, item = key.execution_id, key.node_id, key.item
        if logs:
            self.executemany(
                _ADD_LOG,
                [
                    (execution_id, execution_id, node_id, item, line.attempt, line.level, _text(line.message),
                     line.fields, to_micros(line.at), line.trace_id, line.span_id)
                    for line in logs
                ],
            )  # fmt: skip
        if spans:
            self.executemany(
                _ADD_SPAN,
                [
                    (execution_id, span.span_id, span.trace_id, span.parent_span_id, span.node_id, span.item,
                     span.attempt, _text(span.name), span.kind, span.status, span.start_ns, span.end_ns,
                     span.attributes, span.links)
                    for span in spans
                ],
            )  # fmt: skip

    def job(self, run: Run, push: int) -> NodeJob:
        """Describe the push that is owed for a run."""
        return NodeJob(
            run.execution_id,
            run.node_id,
            run.item,
            run.node_type,
            run.queue,
            run.priority,
            push,
            from_micros(self.now),
            run.recovery_attempts,
        )

    def requeue(self, run: Run, *, recovery_attempts: int = 0, because: str, by: str | None = None) -> NodeJob | None:
        """Queue a run again under the next push number, or hold it unless its execution is running.

        `by`: the record that made it ready.
        """
        if run.execution_status != ExecutionStatus.RUNNING:
            self.hold(run, recovery_attempts=recovery_attempts, because=because)
            return None
        if run.status != NodeStatus.QUEUED:
            check_node_transition(run.node_id, NodeStatus(run.status), NodeStatus.QUEUED)
        push = run.push + 1
        pushed = (by, run.recovery_attempts + recovery_attempts, push, self.epoch, self.now, self.now + SUSPECT_MICROS)
        self.execute(_REQUEUE, (*pushed, run.execution_id, run.node_id, run.item))
        self.event(run.execution_id, "node.queued", run, attempt=run.attempt, data={"push": push, "because": because})
        return self.job(run._replace(recovery_attempts=run.recovery_attempts + recovery_attempts), push)

    def hold(
        self, run: Run, *, recovery_attempts: int = 0, attempt: int | None = None, because: str | None = None
    ) -> None:
        """Keep a ready run back until its execution is resumed or retried."""
        check_node_transition(run.node_id, NodeStatus(run.status), NodeStatus.HELD)
        attempt = run.attempt if attempt is None else attempt
        self.execute(
            _HOLD, (run.recovery_attempts + recovery_attempts, attempt, run.execution_id, run.node_id, run.item)
        )
        told = None if because is None else {"because": because}
        self.event(run.execution_id, "node.held", run, attempt=attempt, data=told)

    def flush(self) -> None:
        """Write what was kept back."""
        self.flush_results()
        if self._events:
            self.executemany(_ADD_EVENT, self._events)
            self._events.clear()

    def flush_results(self) -> None:
        """Write the results that were kept back."""
        if self.results:
            self.executemany(_ADD_RESULT, self.results)
            self.results.clear()


def _text(said: str) -> str:
    """Return what a handler said without what UTF-8 can't hold: halves of a surrogate pair, as in odd file names."""
    return said if said.isascii() else said.encode("utf-8", "replace").decode()


def record_reference(node_id: str, item: int, fence: int) -> str:
    """Name one claim within its execution; what a record made ready or ended carries this."""
    return f"{node_id}/{item}/{fence}"
