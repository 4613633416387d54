-- Starts that replay: the new execution begins where an earlier one had got to.

-- Why the results of these nodes can't be taken over: ['no source'], or ['not arrived', node, its status]; null if they can.
create function {schema}.not_carried_v1(p_source uuid, p_carried text[]) returns text[]
language plpgsql
as $$
declare
    v_why text[];
begin
    -- Shared until the end: neither a purge nor a retry takes away meanwhile what is found here.
    perform from {schema}.executions where id = p_source for share;
    if not found then
        return array['no source'];
    end if;
    select array['not arrived', c.node_id, coalesce(r.status, n.status, 'pending')] into v_why
    from unnest(p_carried) with ordinality c (node_id, number)
    left join {schema}.node_results r on r.execution_id = p_source and r.node_id = c.node_id and r.item = 0
    left join {schema}.node_runs n on n.execution_id = p_source and n.node_id = c.node_id and n.item = 0
    where not coalesce(r.arrived, false)
    order by c.number
    limit 1;
    return v_why;
end
$$;

-- Begin a running execution, which has no rows yet, with the results of its source. p_push 0 leaves the first push to the
-- sweep.
create function {schema}.replay_v1(
    p_execution uuid, p_source uuid, p_carried text[], p_skipped text[], p_push integer, p_epoch bigint,
    p_now timestamptz, p_due timestamptz
) returns void
language plpgsql
as $$
declare
    x {schema}.executions;
    v_left integer;
begin
    select * into x from {schema}.executions where id = p_execution;
    insert into {schema}.node_results (
        execution_id, node_id, item, node_type, status, data, error, taken, arrived, attempt, recovery_attempts, fence, push, worker_id,
        started_at, ended_at
    )
    select p_execution, r.node_id, r.item, r.node_type, r.status, r.data, r.error, r.taken, true, r.attempt, r.recovery_attempts, 0, 0,
        r.worker_id, r.started_at, r.ended_at
    from unnest(p_carried) c (node_id)
    cross join lateral (
        select r.* from {schema}.node_results r where r.execution_id = p_source and r.node_id = c.node_id offset 0
    ) r;
    insert into {schema}.node_items (execution_id, node_id, item, data)
    select p_execution, i.node_id, i.item, i.data
    from unnest(p_carried) c (node_id)
    cross join lateral (
        select i.* from {schema}.node_items i where i.execution_id = p_source and i.node_id = c.node_id offset 0
    ) i;

    insert into {schema}.node_results (
        execution_id, node_id, item, node_type, status, arrived, attempt, recovery_attempts, fence, push, ended_at
    )
    select p_execution, s.node_id, 0, e.target_type, 'skipped', true, 1, 0, 0, 0, p_now
    from unnest(p_skipped) s (node_id)
    cross join lateral (
        select e.target_type
        from {schema}.workflow_edges e
        where e.workflow_id = x.workflow_id and e.version = x.version and e.target = s.node_id
        limit 1
    ) e;

    perform {schema}.append_events_v1(
        array[row (p_execution, 'execution.started', null, 0, null, null, null)::{schema}.event_v1], p_now
    );
    v_left := {schema}.recount_arrivals_v1(x, array(
        select distinct e.target
        from (
            select '$start'
            union all
            select r.node_id from {schema}.node_results r where r.execution_id = p_execution and r.item = 0
        ) s (node_id)
        cross join lateral (
            select e.target
            from {schema}.workflow_edges e
            where e.workflow_id = x.workflow_id and e.version = x.version and e.source = s.node_id
            offset 0
        ) e
        where e.target <> '$end' and not exists (
            select from {schema}.node_results r
            where r.execution_id = p_execution and r.node_id = e.target and r.item = 0
            offset 0
        )
    ), p_push, p_epoch, p_now, p_due);
end
$$;
