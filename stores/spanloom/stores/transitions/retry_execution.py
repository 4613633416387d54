"""The retry of a failed execution: its failed runs start anew, with the children and items they waited for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from spanloom.engine.errors import UserError
from spanloom.engine.store.requests import PARENT, ControlResult, NodeJob, NodeKey
from spanloom.engine.store.states import ExecutionStatus, NodeStatus, WaitKind, check_node_transition
from spanloom.stores.schema import FENCES_A_REVISION
from spanloom.stores.transitions.arrivals import complete, queue_held, queued, recount_arrivals
from spanloom.stores.transitions.control import Answer, ControlTarget, cancel_open, find_all
from spanloom.stores.transitions.rows import Event, ExecutionRow, ResultRow, RunFilter, RunRow, as_data
from spanloom.stores.transitions.transaction import Transaction, always
from spanloom.stores.transitions.waits.mapped import Bounds, Opening, open_items, read_bounds
from spanloom.stores.transitions.waits.rules import WAITS

__all__ = ["retry"]


def retry(tx: Transaction, targets: Sequence[ControlTarget]) -> list[Answer]:
    """Set failed executions running again, each with the children by which it failed."""
    found = find_all(tx, targets, ExecutionStatus.RUNNING, only=ExecutionStatus.FAILED)
    roots = [row.id for row in found if isinstance(row, ExecutionRow)]
    if roots:
        tx.lock_descendants(roots)
    answers: list[Answer] = []
    reached: set[str] = set()
    for row in found:
        if isinstance(row, UserError):
            answers.append(row)
        elif row.id in reached:  # it came with its parent
            answers.append(ControlResult(False, row.revision + 1))
        else:
            retried = _Retry(tx)
            retried.run_again(row)
            reached.update(retried.changed)
            answers.append(ControlResult(True, row.revision + 1, retried.changed, retried.jobs))
    return answers


class _Retry:
    """One retry: the executions that it changed, and the jobs to push."""

    def __init__(self, tx: Transaction) -> None:
        self.changed: list[str] = []
        self.jobs: list[NodeJob] = []
        self._tx = tx

    def run_again(self, failed: ExecutionRow) -> None:
        """Set a failed execution running again. Its row and those of its descendants are locked."""
        tx = self._tx
        (execution,) = tx.set_status([failed], ExecutionStatus.RUNNING, error=None, ended_at=None, acknowledged_at=None)
        self.changed.append(execution.id)
        tx.add_events([Event(execution.id, "execution.retried", data=as_data({"revision": execution.revision}))])
        tx.delete_runs([NodeKey(execution.id, PARENT)])
        graph = tx.graph(execution.workflow_id, execution.version)
        results = tx.results(execution.id)
        failures = [row for row in results if row.status == NodeStatus.FAILED]
        handled = graph.downstream(row.node_id for row in failures if row.arrived)
        self._reset(execution, handled)
        again = [row for row in failures if row.node_id not in handled]
        self._forget(again)
        kept = [row for row in results if row.node_id not in handled and row not in again]
        left, _ = recount_arrivals(tx, execution, handled, kept)
        self._wait_for_failed_children(execution)
        self.jobs += [tx.job(run) for run in queue_held(tx, [execution.id], because="retried")]
        names = [result.node_id for result in again]
        bounds = read_bounds(tx, execution.id, names) if names else {}
        children = tx.children(execution.id, names) if names else []
        for result in again:
            mine = [child for child in children if child.parent_node_id == result.node_id]
            self._start_anew(execution, result, bounds.get(result.node_id), mine)
        if not left:  # it had failed for its deadline, with its last run under way
            complete(tx, execution, None)

    def _reset(self, execution: ExecutionRow, nodes: Collection[str]) -> None:
        """Delete all state of the nodes downstream of a failure that was handled; cancel their open children."""
        if not nodes:
            return
        tx = self._tx
        rows: list[RunRow | ResultRow] = [
            *tx.delete_runs_of([execution.id], nodes), *tx.delete_results(execution.id, nodes)
        ]  # fmt: skip
        tx.delete_items(execution.id, nodes)
        for row in sorted(rows, key=lambda row: (row.node_id, row.item)):
            if row.status != NodeStatus.PENDING:
                check_node_transition(row.node_id, NodeStatus(row.status), NodeStatus.PENDING)
                tx.add_events([Event(execution.id, "node.reset", row.node_id, row.item, row.attempt)])
        children = tx.children(execution.id, nodes)
        locked = tx.lock_executions([child.id for child in children], alone=always)
        family = [*locked.values(), *tx.lock_descendants(list(locked))]
        family.sort(key=lambda row: (row.depth, row.created_at, row.id))
        self.changed += [row.id for row in cancel_open(tx, family)]

    def _forget(self, results: Sequence[ResultRow]) -> None:
        for result in results:
            self._tx.delete_result(NodeKey(result.execution_id, result.node_id, result.item))

    def _wait_for_failed_children(self, execution: ExecutionRow) -> None:
        """Make held runs wait again for children that had failed, and retry these.

        Such a run is held because its execution had failed too before the run could handle the child's failure.
        """
        tx = self._tx
        held = tx.find_runs(RunFilter([execution.id], [NodeStatus.HELD], WaitKind.CHILD.value))
        children = tx.executions({run.wait_key for run in held if run.wait_key is not None})
        for run in held:
            child = children.get(run.wait_key or "")
            if child is None or child.status != ExecutionStatus.FAILED or child.parent_fence != run.fence:
                continue
            tx.update_runs([(run, run._replace(status=NodeStatus.WAITING.value))])
            self._note_waiting(run, {"wait_kind": WaitKind.CHILD.value, "wait_key": child.id})
            self.run_again(child)

    def _start_anew(
        self, execution: ExecutionRow, result: ResultRow, bounds: Bounds | None, children: Sequence[ExecutionRow]
    ) -> None:
        """Create a failed run anew: queued, or waiting again for its child or items if these run again as well."""
        edge = self._tx.graph(execution.workflow_id, execution.version).target(result.node_id)
        assert edge is not None
        run = RunRow(
            execution.id, result.node_id, 0, NodeStatus.FAILED.value, edge.target_type, edge.target_queue,
            execution.priority, fence=max(result.fence, execution.first_fence), push=result.push,
            pushed_epoch=self._tx.epoch, span=result.span,
        )  # fmt: skip
        # A child from before an earlier reset of the run does not count.
        since = result.fence // FENCES_A_REVISION * FENCES_A_REVISION
        own = [child for child in children if child.parent_item == 0 and (child.parent_fence or 0) >= since]
        child = own[-1] if own and own[-1].status != ExecutionStatus.CANCELLED else None
        kind = WaitKind.ITEMS if bounds is not None else WaitKind.CHILD if child is not None else None
        how = "anew" if kind is None else WAITS[kind].on_retry
        if how == "items" and bounds is not None:
            self._wait_for_items(execution, run, bounds)
        elif how == "child" and child is not None:
            self._wait_for_child(run, child)
        else:
            self._queue(run)

    def _wait_for_child(self, run: RunRow, child: ExecutionRow) -> None:
        woken = run._replace(wait_kind=WaitKind.CHILD.value, wait_key=child.id, fence=run.fence + 1)
        self._tx.update_executions([child], parent_fence=woken.fence)
        if child.status == ExecutionStatus.COMPLETED:
            self._queue(woken)
            return
        waiting = woken._replace(status=NodeStatus.WAITING.value)
        self._insert(run, waiting)
        self._note_waiting(waiting, {"wait_kind": WaitKind.CHILD.value, "wait_key": child.id})
        if child.status == ExecutionStatus.FAILED:
            self.run_again(child._replace(parent_fence=waiting.fence))

    def _wait_for_items(self, execution: ExecutionRow, run: RunRow, bounds: Bounds) -> None:
        """Make a mapped node wait for its items again. Failed items start anew, then those never started."""
        tx = self._tx
        earlier = {row.item: row for row in tx.delete_item_results(run.execution_id, run.node_id, failed_only=True)}
        count = tx.item_count(run.execution_id, run.node_id)
        first = tx.next_items(run.execution_id, run.node_id, 1, bounds.max_concurrency)
        woken = run._replace(
            wait_kind=WaitKind.ITEMS.value, wait_key=bounds.wait_key, items=count, pending=len(first),
            max_concurrency=bounds.max_concurrency, tolerated_failures=bounds.tolerated_failures,
            taken=bounds.tolerated_failures, next_item=(first[-1] if first else count) + 1,
        )  # fmt: skip
        if not first:  # all of them have ended well
            self._queue(woken)
            return
        waiting = woken._replace(status=NodeStatus.WAITING.value)
        self._insert(run, waiting)
        details = {"wait_kind": WaitKind.ITEMS.value, "wait_key": bounds.wait_key, "items": count}
        limits = {"max_concurrency": bounds.max_concurrency, "tolerated_failures": bounds.tolerated_failures}
        self._note_waiting(waiting, {**details, **limits})
        openings = [
            Opening(item, fence=max(execution.first_fence, before.fence), push=before.push, span=before.span)
            if (before := earlier.get(item)) is not None
            else Opening(item, fence=execution.first_fence)
            for item in first
        ]
        opened = open_items(tx, execution, waiting, openings, because="retried")
        self.jobs += [self._tx.job(item) for item in opened if item.status == NodeStatus.QUEUED]

    def _queue(self, run: RunRow) -> None:
        new = queued(self._tx, run)
        self._insert(run, new)
        details = as_data({"push": new.push, "because": "retried"})
        self._tx.add_events([Event(new.execution_id, "node.queued", new.node_id, 0, 1, None, details)])
        self.jobs.append(self._tx.job(new))

    def _insert(self, failed: RunRow, run: RunRow) -> None:
        check_node_transition(run.node_id, NodeStatus(failed.status), NodeStatus(run.status))
        self._tx.insert_runs([run])

    def _note_waiting(self, run: RunRow, details: dict[str, Any]) -> None:
        data = as_data({**details, "because": "retried"})
        self._tx.add_events([Event(run.execution_id, "node.waiting", run.node_id, run.item, run.attempt, None, data)])
