-- Record the completion of a node that is alone in its call and the link of a chain: its one successor has no other parent,
-- and its worker goes on with it. Returns the successor's fence, or null if nothing was done: then record_v1 is called,
-- which does the same as a part of itself, and knows all other cases. As a call of its own it is one statement: what a function
-- as large as that one prepares anew in each transaction costs more than this.

create function {schema}.link_v1(
    p_execution uuid, p_node text, p_fence bigint, p_worker text, p_data text, p_taken text[], p_span text, p_start_ns bigint,
    p_end_ns bigint, p_attributes text, p_links text, p_target text, p_target_type text, p_target_queue text, p_epoch bigint,
    p_now timestamptz
) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
    v_now timestamptz := coalesce(p_now, statement_timestamp());
    -- A variable: for a literal the planner might scan a partial index of other runs.
    v_running constant text := 'running';
    v_fence bigint;
begin
    -- The execution is locked first: the run is deleted by what that returns. If either waits for another transaction, its
    -- conditions are looked at again in what that has left.
    with going as materialized (
        select x.status, x.priority, (x.revision::bigint << 20) + 1 as fence
        from {schema}.executions x
        where x.id = p_execution
        for share
    ), ended as (
        delete from {schema}.node_runs n
        using going g
        where n.execution_id = p_execution and n.node_id = p_node and n.item = 0
            and n.status = v_running and n.fence = p_fence and coalesce(n.worker_id, '') = p_worker and n.queue = p_target_queue
            and g.status = v_running
            and exists (
                select from {schema}.workers k
                where k.id = p_worker and k.released_at is null and k.lease_until > v_now
            )
        returning n.node_type, n.attempt, n.recovery_attempts, n.push, n.started_at, g.priority, g.fence,
            coalesce(p_now, clock_timestamp()) as at
    ), kept as (
        insert into {schema}.node_results (
            execution_id, node_id, item, node_type, status, data, taken, arrived, attempt, recovery_attempts, fence, push,
            worker_id, span, span_start_ns, span_end_ns, span_attributes, span_links, started_at, ended_at
        )
        select p_execution, p_node, 0, e.node_type, 'completed', p_data,
            case when p_taken is not null then array_to_json(p_taken)::text end, true, e.attempt, e.recovery_attempts,
            p_fence, e.push, p_worker, p_span, p_start_ns, p_end_ns, p_attributes, p_links, e.started_at, v_now
        from ended e
    ), linked as (
        insert into {schema}.node_runs (
            execution_id, node_id, item, status, node_type, queue, priority, pending, taken, fence, attempt, recovery_attempts,
            worker_id, claim_reference, push, pushed_epoch, started_at
        )
        select p_execution, p_target, 0, 'running', p_target_type, p_target_queue, e.priority, 0, 1, e.fence, 1, 0,
            p_worker, p_node || '/0/' || p_fence, 0, p_epoch, v_now
        from ended e
    ), noted as (
        insert into {schema}.events (execution_id, xid, kind, node_id, item, attempt, worker_id, at)
        select p_execution, pg_current_xact_id()::text::bigint, v.kind, v.node_id, 0, v.attempt, p_worker, e.at
        from ended e
        cross join lateral (
            values (1, 'node.completed', p_node, e.attempt), (2, 'node.started', p_target, 1)
        ) v (number, kind, node_id, attempt)
        order by v.number
    )
    select e.fence into v_fence from ended e;
    return v_fence;
end
$$;
