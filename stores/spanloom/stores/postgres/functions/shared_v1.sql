-- The shared parts of the transitions: the rule of taken edges, and the begin and the failure of an execution.
--
-- Each transition sets planner options for its own duration, never for the session: plans go by key, and are made once.
-- These tables grow from empty within seconds, faster than statistics follow: an early plan would scan whole tables, and
-- a new plan for each call costs more than the call.

create type {schema}.run_key_v1 as (execution_id uuid, node_id text collate "C", item integer);

create type {schema}.event_v1 as (
    execution_id uuid,
    kind text,
    node_id text,
    item integer,
    attempt integer,
    worker_id text,
    data text
);

-- A run's job, as in the answers. The recovery attempts may be left out if there were none.
create function {schema}.job_v1(p_run {schema}.node_runs) returns json
language sql immutable
as $$
    select json_build_array(
        p_run.execution_id, p_run.node_id, p_run.item, p_run.node_type, p_run.queue, p_run.priority, p_run.push,
        p_run.recovery_attempts
    )
$$;

-- Whether a node that ended so takes the edge to p_target; p_taken holds targets, null: the edge's kind decides.
create function {schema}.edge_taken_v1(p_status text, p_taken text[], p_kind text, p_target text) returns boolean
language sql immutable
as $$
    select case
        when p_status not in ('completed', 'failed') then false
        when p_taken is not null then p_target = any(p_taken)
        when p_status = 'completed' then p_kind <> 'failure'
        else p_kind <> 'success'
    end
$$;

-- p_error, a JSON object, with the node's id as its first member. As text: an error may hold values that json functions refuse.
create function {schema}.error_at_v1(p_node text, p_error text) returns text
language sql immutable
as $$
    select '{"node_id":"' || p_node || '"' || case when p_error ~ '^{"' then ',' || substr(p_error, 2) else '}' end
$$;

-- The data of the parents whose edge to p_node was taken, and their spans: a JSON object of [JSON text, span]. Called in a statement of its
-- own after the last arrival: the statement of the arrival would miss siblings that committed while it waited.
create function {schema}.inputs_v1(p_execution uuid, p_workflow text, p_version integer, p_node text) returns json
language plpgsql
as $$
declare
    v_most constant bigint := 4194304;  -- MAX_CLAIM_BYTES
    v_inputs json;
begin
    select json_object_agg(r.node_id, json_build_array(
        case when r.size > v_most then '' else coalesce(r.data, 'null') end, r.span
    ))
    into v_inputs
    from (
        select r.*, e.kind, sum(octet_length(r.data)) over () as size
        from {schema}.workflow_edges e
        cross join lateral (  -- one look-up per edge, whatever the statistics are
            select r.node_id, r.data, r.status, r.span,
                case when r.taken is not null then array(select json_array_elements_text(r.taken::json)) end as taken
            from {schema}.node_results r
            where r.execution_id = p_execution and r.node_id = e.source and r.item = 0
            offset 0
        ) r
        where e.workflow_id = p_workflow and e.version = p_version and e.target = p_node
    ) r
    where {schema}.edge_taken_v1(r.status, r.taken, r.kind, p_node);
    return v_inputs;
end
$$;

-- The data of an item of a mapped node.
create function {schema}.item_data_v1(p_execution uuid, p_node text, p_item integer) returns text
language plpgsql
as $$
declare
    v_data text;
begin
    select data into v_data from {schema}.node_items
    where execution_id = p_execution and node_id = p_node and item = p_item;
    return v_data;
end
$$;

-- The current time, for events after a transition has waited for a lock: the transaction it waited for ended later than p_now,
-- the beginning of its statement. A time that the caller gave stays.
create function {schema}.transaction_time_v1(p_now timestamptz) returns timestamptz
language sql volatile
as $$
    select case p_now when statement_timestamp() then clock_timestamp() else p_now end
$$;

-- Append events, in the order of the array, and return their number. With the transaction's number a cursor skips no late
-- commit. It is PL/pgSQL, which caches its plans; before version 18 a function in SQL is planned at every call.
create function {schema}.append_events_v1(p_events {schema}.event_v1[], p_now timestamptz) returns integer
language plpgsql
as $$
declare
    v_xid bigint := pg_current_xact_id()::text::bigint;
begin
    insert into {schema}.events (execution_id, xid, kind, node_id, item, attempt, worker_id, data, at)
    select e.execution_id, v_xid, e.kind, e.node_id, e.item, e.attempt, e.worker_id, e.data, p_now
    from unnest(p_events) e;
    return cardinality(p_events);
end
$$;

-- Whether a worker holds a lease that has neither lapsed nor been released.
create function {schema}.is_live_v1(p_worker text, p_now timestamptz) returns boolean
language plpgsql stable
as $$
begin
    perform from {schema}.workers where id = p_worker and released_at is null and lease_until > p_now;
    return found;
end
$$;

-- Insert a $parent row, due at once, that notifies the parent of an ended execution, if it has one.
create function {schema}.notify_parent_v1(p_executions uuid[], p_now timestamptz) returns void
language plpgsql
as $$
begin
    insert into {schema}.node_runs (
        execution_id, node_id, item, status, node_type, queue, priority, pending, taken, fence, attempt, recovery_attempts,
        wait_kind, due_at, push, pushed_epoch
    )
    select x.id, '$parent', 0, 'waiting', '$parent', '', x.priority, 0, 0, 0, 1, 0, 'child', p_now, 0, 0
    from {schema}.executions x
    where x.id = any(p_executions) and x.parent_id is not null
    on conflict (execution_id, node_id, item) do update set due_at = excluded.due_at;
end
$$;

-- Insert the $end rows of running executions and their queued entry nodes. p_push 0 leaves the first push to the sweep.
create function {schema}.begin_v1(p_executions uuid[], p_push integer, p_epoch bigint, p_now timestamptz, p_due timestamptz)
returns void
language plpgsql
as $$
begin
    insert into {schema}.node_runs (
        execution_id, node_id, item, status, node_type, queue, priority, pending, taken, fence, attempt, recovery_attempts,
        due_at, push, pushed_epoch
    )
    select x.id, '$end', 0, 'pending', '$end', '', x.priority, v.sinks, 0, 0, 1, 0,
        p_now + x.deadline_seconds * interval '1 second', 0, 0
    from {schema}.executions x
    join {schema}.workflow_versions v on v.workflow_id = x.workflow_id and v.version = x.version
    where x.id = any(p_executions);

    with entries as (
        insert into {schema}.node_runs (
            execution_id, node_id, item, status, node_type, queue, priority, pending, taken, fence, attempt, recovery_attempts,
            due_at, push, pushed_epoch, pushed_at
        )
        select x.id, e.target, 0, 'queued', e.target_type, e.target_queue, x.priority, 0, 1, 0, 1, 0,
            p_due, p_push, p_epoch, p_now
        from {schema}.executions x
        cross join lateral (
            select e.target, e.target_type, e.target_queue
            from {schema}.workflow_edges e
            where e.workflow_id = x.workflow_id and e.version = x.version and e.source = '$start'
            offset 0
        ) e
        where x.id = any(p_executions)
        returning execution_id, node_id
    )
    insert into {schema}.events (execution_id, xid, kind, node_id, item, attempt, data, at)
    select n.execution_id, pg_current_xact_id()::text::bigint, n.kind, n.node_id, 0, n.attempt, n.data, p_now
    from (
        select x.id as execution_id, 'execution.started' as kind, null as node_id, null::integer as attempt, null as data
        from unnest(p_executions) x (id)
        union all
        select execution_id, 'node.queued', node_id, 1, '{"push":' || p_push || '}' from entries
    ) n
    order by n.execution_id, n.node_id nulls first;
end
$$;

-- Fail a running or paused execution whose row the caller has locked FOR NO KEY UPDATE; its ready runs are held.
-- p_brief is the part of the error in its event; p_by names the claim whose record failed it.
create function {schema}.fail_v1(p_execution uuid, p_error text, p_brief text, p_by text, p_now timestamptz) returns void
language plpgsql
as $$
begin
    update {schema}.executions set status = 'failed', error = p_error, ended_at = p_now where id = p_execution;
    -- The deadline is cleared: a row that may not progress is not due.
    update {schema}.node_runs set due_at = null where execution_id = p_execution and node_id = '$end' and item = 0;
    with held as (
        -- A queued run keeps its wait kind, by which it was woken; one that waited for a retry is ready and nothing more.
        update {schema}.node_runs
        set status = 'held', claim_reference = null, due_at = null,
            wait_kind = case status when 'queued' then wait_kind end, wait_key = case status when 'queued' then wait_key end
        where execution_id = p_execution and (status = 'queued' or (status = 'waiting' and wait_kind = 'retry'))
        returning node_id, item, attempt
    )
    insert into {schema}.events (execution_id, xid, kind, node_id, item, attempt, data, at)
    select p_execution, pg_current_xact_id()::text::bigint, n.kind, n.node_id, n.item, n.attempt, n.data, p_now
    from (
        select 'execution.failed' as kind, null as node_id, 0 as item, null::integer as attempt,
            '{"error":' || p_brief || ',"by":' || coalesce('"' || p_by || '"', 'null') || '}' as data
        union all
        select 'node.held', node_id, item, attempt, null from held
    ) n
    order by n.node_id nulls first, n.item;
    perform {schema}.notify_parent_v1(array[p_execution], p_now);
end
$$;
