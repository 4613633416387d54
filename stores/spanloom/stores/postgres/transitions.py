"""The port's transitions on Postgres: each a call of a PL/pgSQL function, one round trip for a list."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, TypeVar

from spanloom.engine.errors import (
    IdempotencyConflict,
    InvalidTransition,
    PayloadRejected,
    StaleVersion,
    StoreNotMigrated,
    StoreRefused,
    StoreUnavailable,
    UnknownExecution,
)
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import (
    ClaimAnswer,
    ControlResult,
    EpochState,
    NodeJob,
    NodeKey,
    PurgeResult,
    RecordRequest,
    RecordResult,
    Refusal,
    StartAnswer,
    StartRequest,
    SweepResult,
)
from spanloom.engine.store.states import ExecutionStatus
from spanloom.stores.postgres import wire as wire
from spanloom.stores.postgres.connections import PostgresConnections
from spanloom.stores.sql.base import canonical_id, check_ended, check_manual, check_wait
from spanloom.stores.sql.reads import SqlStore

__all__ = ["PostgresTransitions"]

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class _Asked(NamedTuple):
    """A control transition: of which execution, at which revision it was read, to become what."""

    execution_id: str
    expected_revision: int | None
    wanted: str


class PostgresTransitions(SqlStore, ExecutionStore):
    """Implement NodeTransitions, Control, and what of WorkerLeases and Recovery moves node runs."""

    def __init__(self, connections: PostgresConnections) -> None:
        self._connections = connections
        schema = f'"{connections.location.namespace}"'
        self._start = f"select {schema}.start_v1(%s::json, %s::bigint, %s::boolean, %s::timestamptz)"
        self._claim = f"select {schema}.claim_v1(%s::json, %s::text, %s::text, %s::timestamptz)"
        self._record = f"select {schema}.record_v1(%s::json, %s::bigint, %s::timestamptz)"
        self._wake = f"select {schema}.wake_v1(%s::json, %s::bigint, %s::timestamptz)"
        self._cancel = f"select {schema}.cancel_v1(%s::uuid, %s::integer, %s::timestamptz)"
        self._pause = f"select {schema}.pause_v1(%s::uuid, %s::integer, %s::timestamptz)"
        self._resume = f"select {schema}.resume_v1(%s::uuid, %s::integer, %s::bigint, %s::timestamptz)"
        self._retry = f"select {schema}.retry_v1(%s::uuid, %s::integer, %s::bigint, %s::timestamptz)"
        self._fail = f"select {schema}.fail_execution_v1(%s::uuid, %s::text, %s::text, %s::integer, %s::timestamptz)"
        self._discard = f"select {schema}.acknowledge_v1(%s::uuid, %s::integer, %s::timestamptz)"
        self._by_hand = f"select {schema}.end_manually_v1(%s::json, %s::bigint, %s::timestamptz)"
        self._purge = f"select {schema}.purge_v1(%s::timestamptz, %s::text[], %s::integer, %s::timestamptz)"
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
        self._retire = f"select {schema}.unregister_worker_v1(%s::text, %s::bigint, %s::timestamptz)"
        self._sweep = f"select {schema}.sweep_v1(%s::json, %s::bigint, %s::integer, %s::float8, %s::timestamptz)"

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
            call = partial(self._connections.call_within, connection)
            return wire.started(requests, call(self._start, (wire.starts(requests), epoch, True, now)))

        def create(some: Sequence[StartRequest]) -> list[StartAnswer]:
            try:
                return wire.started(some, self._call(self._start, wire.starts(some), epoch, False, now))
            except PayloadRejected as refused:
                if len(some) > 1:
                    raise
                return [refused]

        return self._each(requests, create)

    def claim(
        self, keys: Sequence[NodeKey], *, worker_id: str, token: str | None = None, now: datetime | None = None
    ) -> list[ClaimAnswer]:
        """See NodeTransitions.claim."""

        def claim(some: Sequence[NodeKey]) -> list[ClaimAnswer]:
            known = wire.keys(some)
            if known is None:
                return [Refusal.GONE] * len(some)
            return wire.claims(len(some), self._call(self._claim, known, worker_id, token, now))

        return self._each(keys, claim)

    def record(
        self, records: Sequence[RecordRequest], *, epoch: int = 0, now: datetime | None = None
    ) -> list[RecordResult]:
        """See NodeTransitions.record."""

        def record(some: Sequence[RecordRequest]) -> list[RecordResult]:
            order = wire.in_key_order(some)
            if not order:
                return [RecordResult(recorded=False)] * len(some)
            for one in some:
                check_wait(one)
            try:
                answer = self._call(self._record, wire.records(some, order), epoch, now)
            except StoreRefused as error:
                raise (_key_conflict(some[0], error) or error) from error.__cause__
            return wire.recorded(some, order, answer)

        return self._each(records, record)

    def wake_parents(
        self, execution_ids: Sequence[str], *, epoch: int = 0, now: datetime | None = None
    ) -> list[NodeJob]:
        """See NodeTransitions.wake_parents."""
        known = [execution_id for execution_id in execution_ids if canonical_id(execution_id) is not None]
        return wire.owed(self._call(self._wake, json.dumps(known), epoch, now)) if known else []

    def cancel_execution(
        self, execution_id: str, *, expected_revision: int | None = None, now: datetime | None = None
    ) -> ControlResult:
        """See Control.cancel_execution."""
        asked = _Asked(execution_id, expected_revision, ExecutionStatus.CANCELLED)
        return self._control(asked, self._cancel, now)

    def pause_execution(
        self, execution_id: str, *, expected_revision: int | None = None, now: datetime | None = None
    ) -> ControlResult:
        """See Control.pause_execution."""
        asked = _Asked(execution_id, expected_revision, ExecutionStatus.PAUSED)
        return self._control(asked, self._pause, now)

    def resume_execution(
        self, execution_id: str, *, expected_revision: int | None = None, epoch: int = 0, now: datetime | None = None
    ) -> ControlResult:
        """See Control.resume_execution."""
        asked = _Asked(execution_id, expected_revision, ExecutionStatus.RUNNING)
        return self._control(asked, self._resume, epoch, now)

    def retry_execution(
        self, execution_id: str, *, expected_revision: int | None = None, epoch: int = 0, now: datetime | None = None
    ) -> ControlResult:
        """See Control.retry_execution."""
        asked = _Asked(execution_id, expected_revision, ExecutionStatus.RUNNING)
        return self._control(asked, self._retry, epoch, now)

    def fail_execution(
        self, execution_id: str, error: str, *, expected_revision: int | None = None, now: datetime | None = None
    ) -> ControlResult:
        """See Control.fail_execution."""
        asked = _Asked(execution_id, expected_revision, ExecutionStatus.FAILED)
        return self._control(asked, self._fail, now, told=(error, wire.brief(error)))

    def acknowledge_execution(
        self, execution_id: str, *, expected_revision: int | None = None, now: datetime | None = None
    ) -> ControlResult:
        """See Control.acknowledge_execution."""
        asked = _Asked(execution_id, expected_revision, "acknowledged")
        return self._control(asked, self._discard, now)

    def update_node_result(self, record: RecordRequest, *, epoch: int = 0, now: datetime | None = None) -> RecordResult:
        """See Control.update_node_result."""
        check_manual(record)
        if canonical_id(record.execution_id) is None:
            raise UnknownExecution(record.execution_id)
        return wire.ended_by_hand(record, self._call(self._by_hand, wire.by_hand(record), epoch, now))

    def purge_executions(
        self,
        *,
        ended_before: datetime,
        statuses: Sequence[ExecutionStatus],
        limit: int = 500,
        now: datetime | None = None,
    ) -> PurgeResult:
        """See Retention.purge_executions."""
        wanted = check_ended(statuses)
        self.open()
        return wire.purged(self._connections.call(self._purge, (ended_before, wanted, limit, now)))

    def renew_lease(self, worker_id: str, *, lease_seconds: float, now: datetime | None = None) -> bool:
        """See WorkerLeases.renew_lease. One statement: who stops between two would keep the lease locked for good.

        Over a connection of its own: a lease must not lapse because many slots are busy with the others.
        """
        self.open()
        return self._connections.call(self._renew, (worker_id, lease_seconds, now), reserved=True) is True

    def unregister_worker(self, worker_id: str, *, epoch: int = 0, now: datetime | None = None) -> list[NodeJob]:
        """See WorkerLeases.unregister_worker."""
        return wire.owed(self._call(self._retire, worker_id, epoch, now))

    def raise_epoch(self, expected: int, redis_run_id: str | None) -> EpochState:
        """See Recovery.raise_epoch. One statement: who stops between two would keep all sweepers waiting."""
        raised = self._call(self._raise, redis_run_id, expected) is True
        return replace(self.get_epoch(), raised=raised)

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
        pushed = json.dumps({name: None if head is None else head.isoformat() for name, head in heads.items()})
        return wire.swept(self._call(self._sweep, pushed, epoch, limit, lost_job_after_seconds, now))

    def _control(self, asked: _Asked, statement: str, *parameters: Any, told: tuple[str, ...] = ()) -> ControlResult:
        execution_id, expected, wanted = asked
        spelled = canonical_id(execution_id)
        if spelled is None:
            raise UnknownExecution(execution_id)
        said, answer = wire.controlled(self._call(statement, spelled, *told, expected, *parameters))
        if said == "unknown":
            raise UnknownExecution(execution_id)
        if said == "stale":
            assert expected is not None
            current = self.get_execution(execution_id)
            raise StaleVersion(f"execution {execution_id}", expected, answer.revision, current)
        if said not in ("done", "so"):
            raise InvalidTransition(f"execution {execution_id}", said, wanted)
        return answer

    def _call(self, statement: str, document: str | None, *parameters: Any) -> Any:
        self.open()
        try:
            return self._connections.call(statement, (document, *parameters))
        except PayloadRejected:
            # Once more without what Postgres' text can't hold, such as a NUL that a handler logged.
            if document is None or (scrubbed := wire.scrubbed(document)) == document:
                raise
        return self._connections.call(statement, (scrubbed, *parameters))

    def _each(self, items: Sequence[Asked], step: Callable[[Sequence[Asked]], list[Answer]]) -> list[Answer]:
        """Do a step for all items in one call; if one of them can't be done, in a call for each.

        Then every other item is done before the error of the one is raised.
        """
        if not items:
            return []
        try:
            return step(items)
        except (StoreUnavailable, StoreNotMigrated):
            raise
        except Exception:
            if len(items) == 1 or self._connections.joined:  # a transaction does not survive an error
                raise
        answers: list[Answer] = []
        failure: Exception | None = None
        for item in items:
            try:
                answers.extend(step([item]))
            except StoreUnavailable:
                raise
            except Exception as error:  # raised below: the items beside it come first
                failure = error
        if failure is not None:
            raise failure
        return answers


def _key_conflict(record: RecordRequest, error: StoreRefused) -> IdempotencyConflict | None:
    """Return why a child was not started, if that was its idempotency key."""
    told = getattr(error.__cause__, "diag", None)
    if record.child is None or record.child.idempotency_key is None or told is None:
        return None
    if told.constraint_name != "idempotency_keys":
        return None
    return IdempotencyConflict(record.child.workflow_id, record.child.idempotency_key, told.message_detail)
