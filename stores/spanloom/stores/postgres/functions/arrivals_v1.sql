-- What has arrived at nodes, counted by the results that are there: after a retry's reset, and where a replay begins.

-- What arrived at each of these nodes, if something did; at an entry node that is the start of the execution.
create function {schema}.arrivals_of_v1(p_execution {schema}.executions, p_nodes text[])
returns table (node_id text, node_type text, queue text, inputs integer, arrived integer, taken integer)
language plpgsql
as $$
begin
    return query
    select e.target::text, min(e.target_type), min(e.target_queue), min(e.target_inputs), count(*)::integer,
        (count(*) filter (where e.source = '$start' or {schema}.edge_taken_v1(
            r.status, case when r.taken is not null then array(select json_array_elements_text(r.taken::json)) end,
            e.kind, e.target
        )))::integer
    from unnest(p_nodes) n (target)
    cross join lateral (  -- look-ups by key, whatever the planner knows of the tables
        select e.*
        from {schema}.workflow_edges e
        where e.workflow_id = p_execution.workflow_id and e.version = p_execution.version and e.target = n.target
        offset 0
    ) e
    left join lateral (
        select r.status, r.taken
        from {schema}.node_results r
        where r.execution_id = p_execution.id and r.node_id = e.source and r.item = 0 and r.arrived
        offset 0
    ) r on true
    where e.source = '$start' or r.status is not null
    group by e.target;
end
$$;

-- Make the rows of these nodes, which have none, as their arrivals want it, and the row of $end, whose deadline counts from
-- now. Answers how many arrivals $end waits for.
create function {schema}.recount_arrivals_v1(
    p_execution {schema}.executions, p_nodes text[], p_push integer, p_epoch bigint, p_now timestamptz, p_due timestamptz
) returns integer
language plpgsql
as $$
declare
    v_left integer;
begin
    with counted as (
        insert into {schema}.node_runs (
            execution_id, node_id, item, status, node_type, queue, priority, pending, taken, fence, attempt, recovery_attempts,
            due_at, push, pushed_epoch, pushed_at
        )
        select p_execution.id, a.node_id, 0, case when a.ready then 'queued' else 'pending' end, a.node_type, a.queue,
            p_execution.priority, a.inputs - a.arrived, a.taken, p_execution.revision::bigint << 20, 1, 0,
            case when a.ready then p_due end, case when a.ready then p_push else 0 end,
            case when a.ready then p_epoch else 0 end, case when a.ready then p_now end
        from (
            select c.*, c.arrived = c.inputs and c.taken > 0 as ready
            from {schema}.arrivals_of_v1(p_execution, p_nodes) c
        ) a
        returning node_id, status
    )
    insert into {schema}.events (execution_id, xid, kind, node_id, item, attempt, data, at)
    select p_execution.id, pg_current_xact_id()::text::bigint, 'node.queued', node_id, 0, 1, '{"push":' || p_push || '}',
        p_now
    from counted
    where status = 'queued'
    order by node_id;

    insert into {schema}.node_runs as o (
        execution_id, node_id, item, status, node_type, queue, priority, pending, taken, fence, attempt, recovery_attempts, due_at,
        push, pushed_epoch
    )
    select p_execution.id, '$end', 0, 'pending', '$end', '', p_execution.priority,
        v.sinks - coalesce((select a.arrived from {schema}.arrivals_of_v1(p_execution, array['$end']) a), 0), 0, 0, 1, 0,
        p_now + p_execution.deadline_seconds * interval '1 second', 0, 0
    from {schema}.workflow_versions v
    where v.workflow_id = p_execution.workflow_id and v.version = p_execution.version
    on conflict (execution_id, node_id, item) do update set pending = excluded.pending, due_at = excluded.due_at
    returning o.pending into v_left;
    return v_left;
end
$$;
