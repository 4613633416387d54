"""The accelerator of the hot transitions on Postgres: start, claim, record, wake and sweep as PL/pgSQL functions.

Each is one round trip for a list. `transitions/` is the reference, with which tests compare the functions on one
database. A store with `accelerated=False` runs the reference instead, also beside stores that run the functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from cachetools import LRUCache

from spanloom.engine.errors import IdempotencyConflict, PayloadRejected, StoreRefused
from spanloom.engine.store.requests import (
    ClaimAnswer,
    EpochState,
    NodeJob,
    NodeKey,
    Outcome,
    RecordRequest,
    RecordResult,
    Refusal,
    StartAnswer,
    StartRequest,
    SweepResult,
)
from spanloom.engine.store.states import ExecutionStatus, WaitKind
from spanloom.engine.store.texts import check_exact
from spanloom.stores.postgres import function_json
from spanloom.stores.postgres.connections import PostgresConnections
from spanloom.stores.postgres.lone_link import link_arguments, link_result, link_statement
from spanloom.stores.postgres.time_limit import LEASE_SECONDS, long, within
from spanloom.stores.postgres.transaction import PostgresTransaction
from spanloom.stores.sql.base import canonical_id
from spanloom.stores.sql.reads import SqlStore
from spanloom.stores.transitions.port import Transitions, exact_starts
from spanloom.stores.transitions.record import ENDS
from spanloom.stores.transitions.rows import Graph
from spanloom.stores.transitions.start import create
from spanloom.stores.transitions.sweep import LostJobCheck
from spanloom.stores.transitions.transaction import Transaction
from spanloom.stores.transitions.waits.rules import check_wait

__all__ = ["AcceleratedTransitions"]

GRAPHS_KEPT = 256  # versions whose edges a process caches

#: The kinds of wait that the function which records knows; batches with any other are recorded by the transitions.
SUPPORTED_WAITS = frozenset({WaitKind.TIMER, WaitKind.CHILD, WaitKind.ITEMS})

Answer = TypeVar("Answer")


class AcceleratedTransitions(Transitions, SqlStore):
    """All transitions over Postgres, the hot ones by function calls unless `accelerated` is False."""

    def __init__(self, connections: PostgresConnections, *, accelerated: bool = True) -> None:
        self._connections = connections
        self._accelerated = accelerated
        self._graphs: LRUCache[tuple[str, int], Graph] = LRUCache(GRAPHS_KEPT)
        schema = f'"{connections.location.namespace}"'
        self._start = f"select {schema}.start_v1(%s::json, %s::bigint, %s::boolean, %s::timestamptz)"
        self._claim = f"select {schema}.claim_v1(%s::json, %s::text, %s::text, %s::timestamptz)"
        self._record = f"select {schema}.record_v1(%s::json, %s::bigint, %s::timestamptz)"
        self._link = link_statement(schema)
        self._wake = f"select {schema}.wake_parents_v1(%s::json, %s::bigint, %s::timestamptz)"
        self._sweep = f"select {schema}.sweep_v1(%s::json, %s::bigint, %s::integer, %s::float8, %s::timestamptz)"
        self._status = f"select status from {schema}.executions where id = %s::uuid"  # noqa: S608  as below
        self._renew = (
            f"update {schema}.workers w "  # noqa: S608  the namespace was checked
            "set lease_until = coalesce(g.at, statement_timestamp()) + g.seconds * interval '1 second' "
            "from (values (%s::text, %s::float8, %s::timestamptz)) g (id, seconds, at) "
            "where w.id = g.id and w.released_at is null returning true"
        )
        self._raise = (
            f"update {schema}.store_state set epoch = epoch + 1, redis_run_id = %s::text "  # noqa: S608  as above
            "where epoch = %s::bigint returning true"
        )

    def create_executions(
        self,
        requests: Sequence[StartRequest],
        *,
        epoch: int = 0,
        connection: Any = None,
        now: datetime | None = None,
    ) -> list[StartAnswer]:
        """See NodeTransitions.create_executions."""
        if connection is not None:
            return exact_starts(requests, lambda some: self._create_within(connection, some, epoch, now))
        if _replays(requests):
            with long():
                return super().create_executions(requests, epoch=epoch, now=now)
        if not self._accelerated:
            return super().create_executions(requests, epoch=epoch, now=now)

        def start(some: Sequence[StartRequest]) -> list[StartAnswer]:
            try:
                return function_json.started(
                    some, self._call(self._start, function_json.starts(some), epoch, False, now)
                )
            except PayloadRejected as refused:
                if len(some) > 1:
                    raise
                return [refused]

        return exact_starts(requests, lambda exact: self._each(exact, start))

    def claim(
        self, keys: Sequence[NodeKey], *, worker_id: str, token: str | None = None, now: datetime | None = None
    ) -> list[ClaimAnswer]:
        """See NodeTransitions.claim."""
        if not self._accelerated:
            return super().claim(keys, worker_id=worker_id, token=token, now=now)

        def call(some: Sequence[NodeKey]) -> list[ClaimAnswer]:
            known = function_json.keys(some)
            if known is None:
                return [Refusal.GONE] * len(some)
            return function_json.claims(len(some), self._call(self._claim, known, worker_id, token, now))

        return self._each(keys, call)

    def record(
        self, records: Sequence[RecordRequest], *, epoch: int = 0, now: datetime | None = None
    ) -> list[RecordResult]:
        """See NodeTransitions.record."""
        if not self._accelerated or _waits_otherwise(records):
            return super().record(records, epoch=epoch, now=now)

        def call(some: Sequence[RecordRequest]) -> list[RecordResult]:
            for request in some:
                check_wait(request)
            order = function_json.in_key_order(some)
            if not order:
                return [RecordResult(recorded=False)] * len(some)
            try:
                graphs = self._graphs_of([some[position] for position in order])
                if len(some) == 1 and (result := self._record_link(some[0], graphs, epoch, now)) is not None:
                    return [result]
                answer = self._call(self._record, function_json.records(some, order, graphs), epoch, now)
            except StoreRefused as error:
                raise (_key_conflict(some[0], error) or error) from error.__cause__
            return function_json.recorded(some, order, answer)

        return self._record_each(records, call)

    def _record_link(
        self, record: RecordRequest, graphs: Mapping[str, Graph], epoch: int, now: datetime | None
    ) -> RecordResult | None:
        """Record a lone link of a chain. None if it is none, or not recorded by that: record_v1 knows why."""
        graph = graphs.get(record.execution_id)
        if graph is None or (arguments := link_arguments(record, graph)) is None:
            return None
        fence = self._call(self._link, *arguments, epoch, now)
        return None if fence is None else link_result(record, arguments, fence)

    def _graphs_of(self, records: Sequence[RecordRequest]) -> dict[str, Graph]:
        """Return the graphs of the executions, by id, in which a node ends."""
        versions = {record.execution_id: record.workflow for record in records if record.outcome in ENDS}
        if unknown := [one for one, workflow in versions.items() if workflow is None]:
            rows = self._transact(lambda tx: tx.executions(unknown))
            found = {one: rows.get(canonical_id(one) or "") for one in unknown}  # however they are spelled
            versions |= {one: (row.workflow_id, row.version) for one, row in found.items() if row is not None}
        graphs: dict[str, Graph] = {}
        for execution_id, workflow in versions.items():
            if workflow is not None:
                graphs[execution_id] = self._graphs.get(workflow) or self._transact(partial(_graph, workflow))
        return graphs

    def get_status(self, execution_id: str) -> ExecutionStatus | None:
        """See ExecutionReads.get_status. One short statement: callers wait by it."""
        spelled = canonical_id(execution_id)
        status = None if spelled is None else self._call(self._status, spelled)
        return None if status is None else ExecutionStatus(status)

    def wake_parents(
        self, execution_ids: Sequence[str], *, epoch: int = 0, now: datetime | None = None
    ) -> list[NodeJob]:
        """See NodeTransitions.wake_parents."""
        if not self._accelerated:
            return super().wake_parents(execution_ids, epoch=epoch, now=now)
        known = [execution_id for execution_id in execution_ids if canonical_id(execution_id) is not None]
        return function_json.owed(self._call(self._wake, json.dumps(known), epoch, now)) if known else []

    def sweep(
        self,
        *,
        heads: Mapping[str, datetime | None],
        epoch: int,
        limit: int = 500,
        lost_job_after_seconds: float = 2.0,
        now: datetime | None = None,
    ) -> SweepResult:
        """See Recovery.sweep."""
        if not self._accelerated:
            return super().sweep(
                heads=heads, epoch=epoch, limit=limit, lost_job_after_seconds=lost_job_after_seconds, now=now
            )
        pushed = json.dumps({name: None if head is None else head.isoformat() for name, head in heads.items()})

        def together() -> SweepResult:
            return function_json.swept(self._call(self._sweep, pushed, epoch, limit, lost_job_after_seconds, now))

        check = LostJobCheck(heads, timedelta(seconds=lost_job_after_seconds))
        return self._sweep_each(together, check, limit=limit, epoch=epoch, now=now)

    def renew_lease(self, worker_id: str, *, lease_seconds: float, now: datetime | None = None) -> bool:
        """See WorkerLeases.renew_lease.

        It is one statement, as a process that stops between two would keep the lease locked for good. It has a
        connection of its own, so that no lease lapses while all others are in use.
        """
        check_exact("worker id", worker_id)
        self.open()
        with within(min(LEASE_SECONDS, lease_seconds / 3)):  # in time for another one before it lapses
            return self._connections.call(self._renew, (worker_id, lease_seconds, now), reserved=True) is True

    def raise_epoch(self, expected: int, redis_run_id: str | None) -> EpochState:
        """See Recovery.raise_epoch. One statement: a process that stops between two would block all sweepers."""
        check_exact("run id of Redis", redis_run_id)
        raised = self._call(self._raise, redis_run_id, expected) is True
        return replace(self.get_epoch(), raised=raised)

    def _create_within(
        self, connection: Any, requests: Sequence[StartRequest], epoch: int, now: datetime | None
    ) -> list[StartAnswer]:
        """Create executions in a caller's transaction. No jobs are returned, as it has not committed yet."""
        if self._accelerated and not _replays(requests):
            call = partial(self._connections.call_within, connection)
            return function_json.started(
                requests, call(self._start, (function_json.starts(requests), epoch, True, now))
            )
        return self._connections.step_within(
            connection, lambda raw: self._step(raw, lambda tx: create(tx, requests, outbox=True), epoch, now, own=False)
        )

    def _transact(
        self, step: Callable[[Transaction], Answer], *, epoch: int = 0, now: datetime | None = None
    ) -> Answer:
        self.open()
        return self._connections.step(lambda raw, own: self._step(raw, step, epoch, now, own=own))

    def _step(
        self, raw: Any, step: Callable[[Transaction], Answer], epoch: int, now: datetime | None, *, own: bool
    ) -> Answer:
        # Edges read inside a caller's transaction may be rolled back with it, so they are not cached.
        graphs = self._graphs if own else {}
        tx = PostgresTransaction(
            raw, self._connections.location.namespace, graphs, now=now, epoch=epoch,
            prepare=self._connections.prepares, own=own,
        )  # fmt: skip
        answer = step(tx)
        tx.flush()
        return answer

    def _survives_errors(self) -> bool:
        return self._connections.joined is None  # a transaction of Postgres does not survive an error

    def _call(self, statement: str, document: str | None, *parameters: Any) -> Any:
        self.open()
        return self._connections.call(statement, (document, *parameters))


def _graph(workflow: tuple[str, int], tx: Transaction) -> Graph:
    return tx.graph(*workflow)


def _replays(requests: Sequence[StartRequest]) -> bool:
    """Return whether a replay is among the requests, which start_v1 does not support."""
    return any(request.replay is not None for request in requests)


def _waits_otherwise(records: Sequence[RecordRequest]) -> bool:
    """Return whether a wait of a kind is among them that the function which records does not know."""
    return any(
        record.outcome is Outcome.WAITING and (record.wait_kind or WaitKind.TIMER) not in SUPPORTED_WAITS
        for record in records
    )


def _key_conflict(record: RecordRequest, error: StoreRefused) -> IdempotencyConflict | None:
    """Return the error of a child that was not started because of its idempotency key, else None."""
    diagnosis = getattr(error.__cause__, "diag", None)
    if record.child is None or record.child.idempotency_key is None or diagnosis is None:
        return None
    if diagnosis.constraint_name != "idempotency_keys":
        return None
    return IdempotencyConflict(record.child.workflow_id, record.child.idempotency_key, diagnosis.message_detail)
