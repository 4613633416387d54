"""The rows of a store that has been in use for a month: as many executions as are wanted, by set-based inserts.

Postgres only. Nothing is drawn at random: the same number makes the same rows, but for the time. Of a thousand
executions 50 are children, 30 failed (20 of them are acknowledged), 20 were cancelled, and the newest two are open; the
rest completed. Open ones wait for times that do not come while something is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from spanloom.engine import Node, Workflow, WorkflowEngine

__all__ = ["CHAIN", "WORKFLOWS", "fill", "register"]

CHAIN = 10  #: nodes of each execution
DAYS = 30
_SLICE = 20_000

#: Each workflow with its share of a thousand executions.
WORKFLOWS = {"orders": 500, "billing": 250, "reports": 150, "imports": 99, "audit": 1}
VERSIONS = 3


def register(engine: WorkflowEngine) -> None:
    """Save three versions of each workflow: chains of ten nodes."""
    for workflow_id in WORKFLOWS:
        for version in range(1, VERSIONS + 1):
            nodes = [
                Node(id=f"n{number}", type="nothing", inputs=[f"n{number - 1}"] * (number > 0), config={"v": version})
                for number in range(CHAIN)
            ]
            engine.register_workflow(Workflow(id=workflow_id, name=f"{workflow_id} {version}", nodes=nodes))


def fill(url: str, executions: int, progress: Callable[[str], None]) -> None:
    """Insert so many executions with everything of theirs, and let Postgres know what is there (VACUUM, ANALYZE)."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set synchronous_commit = off")
        connection.execute("set jit = off")
        for first in range(1, executions + 1, _SLICE):
            last = min(first + _SLICE - 1, executions)
            _insert(connection, first, last, executions)
            progress(f"{last:,} of {executions:,} executions")
        connection.execute("set maintenance_work_mem = '256MB'")
        connection.execute("vacuum (analyze)")


def _insert(connection: psycopg.Connection[Any], first: int, last: int, all_: int) -> None:
    with connection.transaction():
        connection.execute(_PLAN.format(first=first, last=last, all=all_).encode())
        connection.execute("analyze wanted")
        for statement in _STATEMENTS:
            connection.execute(statement.encode())


def _workflow() -> str:
    until, cases = 0, []
    for workflow_id, share in WORKFLOWS.items():
        until += share
        cases.append(f"when i * 7919 % 1000 < {until} then '{workflow_id}'")
    return f"case {' '.join(cases)} end"


def _uuid(number: str, at: str) -> str:
    """Return an expression of the UUIDv7 of a number and its time."""
    millis = f"lpad(to_hex((extract(epoch from {at}) * 1000)::bigint), 12, '0')"
    digest = f"md5(({number})::text)"
    return f"({millis} || '7' || substr({digest}, 1, 3) || '8' || substr({digest}, 4, 15))::uuid"


_AT = f"now() - make_interval(days => {DAYS}) * (1 - ({{number}})::double precision / {{{{all}}}})"
# Every twentieth is a child of the one before it.
_PLAN = f"""
create temporary table wanted on commit drop as
select i, id, at, workflow_id, version, status, parent_id, trace_id,
    case when urgent then left(plain, -1) || ', "urgent" : "yes"}}}}' else plain end as metadata,
    case status when 'completed' then {CHAIN} when 'failed' then 6 when 'pending' then 0 else 4 end as ended_nodes,
    case when status in ('completed', 'failed', 'cancelled') then at + make_interval(secs => 0.2 + i % 50) end
        as ended_at
from (
    select i, at, {_uuid("i", "at")} as id, {_workflow()} as workflow_id, 1 + i % {VERSIONS} as version,
        case
            when i > {{all}} - greatest({{all}} / 500, 10) and i % 20 not in (18, 19)
                then (array['running', 'paused', 'pending'])[1 + i % 3]
            when i * 104729 % 1000 < 30 then 'failed'
            when i * 104729 % 1000 < 50 then 'cancelled'
            else 'completed'
        end as status,
        case when i % 20 = 19 then {_uuid("i - 1", "before")} end as parent_id,
        json_build_object(
            'customer', 'c-' || i * 31 % greatest({{all}} / 50, 10),
            'region', (array['eu', 'eu', 'eu', 'us', 'us', 'apac'])[1 + i % 6],
            'tier', case when i % 4 = 0 then 'gold' else 'basic' end
        )::text as plain,
        i % 10 = 3 as urgent,
        md5('trace' || i) as trace_id
    from (
        select i, {_AT.format(number="i")} as at, {_AT.format(number="i - 1")} as before
        from generate_series({{first}}::bigint, {{last}}::bigint) i
    ) numbers
) drawn
"""

_ERROR = """'{"node_id":"n5","type":"ValueError","message":"no such item","traceback":"'
    || repeat('File x, line 1. ', 20) || '","permanent":true}'"""
_SPAN = "substr(md5(w.i || '/' || n), 1, 16)"
_WORKER = "'vm-' || w.i % 8 || '-29bbf1:0596e94f'"
_ENDED = "w.at + make_interval(secs => 0.02 * (n + 1))"
_NANOSECONDS = f"(extract(epoch from {_ENDED}) * 1000000000)::bigint"
_LAST = "n = w.ended_nodes - 1 and w.status = 'failed'"
_XID = "pg_current_xact_id()::text::bigint"

_STATEMENTS = (
    f"""
    insert into spanloom.executions (
        id, workflow_id, version, status, revision, priority, input, error, metadata, parent_id, parent_node_id,
        parent_item, parent_fence, depth, trace_parent, trace_state, created_at, started_at, ended_at, acknowledged_at
    )
    select w.id, w.workflow_id, w.version, w.status, 0, 'normal',
        json_build_object('id', w.i, 'customer', md5(w.i::text), 'lines', repeat('item 12 x 3, ', 8))::text,
        case when w.status = 'failed' then {_ERROR} end, w.metadata, w.parent_id,
        case when w.parent_id is not null then 'n4' end, case when w.parent_id is not null then 0 end,
        case when w.parent_id is not null then 1 end, case when w.parent_id is not null then 1 else 0 end,
        '00-' || w.trace_id || '-' || substr(md5(w.i::text), 1, 16) || '-01', 'spanloom=undecided', w.at,
        case when w.status <> 'pending' then w.at end, w.ended_at,
        case when w.status = 'failed' and w.i % 3 > 0 then w.ended_at + interval '1 hour' end
    from wanted w order by w.i
    """,
    """
    insert into spanloom.execution_metadata (execution_id, key, value, created_at, workflow_id)
    select w.id, m.key, m.value, w.at, w.workflow_id from wanted w, json_each_text(w.metadata::json) m order by w.i
    """,
    """
    insert into spanloom.idempotency_keys (workflow_id, key, input_hash, execution_id)
    select w.workflow_id, 'key-' || w.i, md5(w.i::text), w.id from wanted w where w.i % 10 = 0
    """,
    f"""
    insert into spanloom.node_results (
        execution_id, node_id, item, node_type, status, data, error, arrived, attempt, recovery_attempts, fence, push,
        worker_id, span, span_start_ns, span_end_ns, span_attributes, span_links, started_at, ended_at
    )
    select w.id, 'n' || n, 0, 'nothing', case when {_LAST} then 'failed' else 'completed' end,
        case when not ({_LAST}) then '{{"total":' || w.i || ',"note":"' || repeat('done ', 12) || '"}}' end,
        case when {_LAST} then {_ERROR} end, not ({_LAST}), 1, 0, 1, case when n = 0 then 1 else 0 end, {_WORKER},
        {_SPAN}, {_NANOSECONDS}, {_NANOSECONDS} + 15000000,
        '{{"spanloom.node.type":"nothing","spanloom.worker":"' || {_WORKER}
            || '","messaging.destination.name":"spanloom.default"}}',
        case when n = 0 then '[]' else '[["parent","' || substr(md5(w.i || '/' || n - 1), 1, 16) || '"]]' end,
        {_ENDED}, {_ENDED} + interval '15 milliseconds'
    from wanted w, generate_series(0, w.ended_nodes - 1) n order by w.i, n
    """,
    f"""
    insert into spanloom.events (execution_id, xid, kind, node_id, item, attempt, worker_id, data, at)
    select w.id, {_XID}, e.kind, e.node_id, 0, e.attempt, e.worker_id, e.data, e.at
    from wanted w
    cross join lateral (
        select 0 as step, 'execution.created' as kind, null as node_id, null::integer as attempt, null as worker_id,
            '{{"version":' || w.version || '}}' as data, w.at
        union all
        select 1, 'execution.started', null, null, null, null, w.at where w.status <> 'pending'
        union all
        select 2, 'node.queued', 'n0', 1, null, '{{"push":1}}', w.at where w.status <> 'pending'
        union all
        select 3 + 2 * n, 'node.started', 'n' || n, 1, {_WORKER}, null, {_ENDED}
        from generate_series(0, w.ended_nodes - 1) n
        union all
        select 4 + 2 * n, case when {_LAST} then 'node.failed' else 'node.completed' end, 'n' || n, 1, {_WORKER},
            case when {_LAST} then {_ERROR} end, {_ENDED} + interval '15 milliseconds'
        from generate_series(0, w.ended_nodes - 1) n
        union all
        select 99, 'execution.' || w.status, null, null, null, '{{"by":"n9/0/1"}}', w.ended_at
        where w.ended_at is not null
    ) e
    order by w.i, e.step
    """,
    f"""
    insert into spanloom.logs (execution_id, node_id, item, attempt, level, message, fields, at, trace_id, span_id)
    select w.id, 'n' || n, 0, 1, 'info', 'item ' || w.i || ' looked up and priced', '{{"lines":3}}', {_ENDED},
        w.trace_id, {_SPAN}
    from wanted w, generate_series(0, w.ended_nodes - 1, 5) n order by w.i, n
    """,
    # What may still change has its $end, and what it waits for: a timer, a resume, or its start.
    """
    insert into spanloom.node_runs (
        execution_id, node_id, item, status, node_type, queue, priority, pending, taken, fence, attempt,
        recovery_attempts, wait_kind, due_at, push, pushed_epoch
    )
    select w.id, r.node_id, 0, r.status, r.node_type, r.queue, 'normal', r.pending, 1, 1, 1, 0, r.wait_kind,
        case when r.wait_kind is not null then now() + interval '10 days' end, 0, 0
    from wanted w
    cross join lateral (
        select '$end' as node_id, 'pending' as status, '$end' as node_type, '' as queue, 1 as pending,
            null as wait_kind where w.status <> 'pending'
        union all
        select 'n4', case w.status when 'running' then 'waiting' else 'held' end, 'nothing', 'default', 0,
            case w.status when 'running' then 'timer' end where w.status in ('running', 'paused')
        union all
        select '$start', 'waiting', '$start', '', 0, 'timer' where w.status = 'pending'
    ) r
    where w.status in ('running', 'paused', 'pending', 'failed')
    """,
)
