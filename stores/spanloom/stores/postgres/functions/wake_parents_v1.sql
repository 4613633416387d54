-- The notification of a parent's run of the end of its child.

-- The effect of ended children: those that woke a run, and the jobs.
create type {schema}.control_v1 as (
    executions uuid[],  -- whose status it changed
    jobs json[]
);

-- Wake the parents' runs of these ended children. The rows of other executions are locked from root to leaf: the parents,
-- their runs, then the $parent rows of the children. Returns the children that woke a run, and the jobs.
create function {schema}.wake_each_v1(p_children uuid[], p_epoch bigint, p_now timestamptz) returns {schema}.control_v1
language plpgsql
as $$
declare
    v_runs {schema}.run_key_v1[];
    v_told uuid[];
    v_result {schema}.control_v1;
begin
    v_runs := array(
        select row (x.parent_id, x.parent_node_id, x.parent_item)::{schema}.run_key_v1
        from {schema}.executions x
        join {schema}.node_runs w on w.execution_id = x.id and w.node_id = '$parent' and w.item = 0
        where x.id = any(p_children)
    );
    if cardinality(v_runs) = 0 then
        return null;
    end if;
    perform from {schema}.executions
    where id = any(array(select r.execution_id from unnest(v_runs) r)) order by id for share;
    perform from {schema}.node_runs n
    join unnest(v_runs) r on n.execution_id = r.execution_id and n.node_id = r.node_id and n.item = r.item
    where n.status = 'waiting'
    order by n.execution_id, n.node_id, n.item
    for update of n;
    perform from {schema}.node_runs
    where execution_id = any(p_children) and node_id = '$parent' and item = 0
    order by execution_id
    for update;
    with told as (
        delete from {schema}.node_runs
        where execution_id = any(p_children) and node_id = '$parent' and item = 0
        returning execution_id
    )
    select coalesce(array_agg(t.execution_id), '{}') into v_told from told t;

    with woken as (
        update {schema}.node_runs n
        set status = case p.status when 'running' then 'queued' else 'held' end,
            push = n.push + case p.status when 'running' then 1 else 0 end,
            pushed_epoch = case p.status when 'running' then p_epoch else n.pushed_epoch end,
            pushed_at = case p.status when 'running' then p_now else n.pushed_at end,
            due_at = case p.status when 'running' then p_now + interval '2 seconds' end
        from {schema}.executions x
        join {schema}.executions p on p.id = x.parent_id
        where x.id = any(v_told)
            and n.execution_id = x.parent_id and n.node_id = x.parent_node_id and n.item = x.parent_item
            and n.status = 'waiting' and n.wait_kind = 'child' and n.wait_key = x.id::text and n.fence = x.parent_fence
        returning n.*
    ), noted as (
        insert into {schema}.events (execution_id, xid, kind, node_id, item, attempt, data, at)
        select execution_id, pg_current_xact_id()::text::bigint, 'node.' || status, node_id, item, attempt,
            '{' || case status when 'queued' then '"push":' || push || ',' else '' end || '"because":"child"}', p_now
        from woken
        order by execution_id, node_id, item
    )
    select array_agg(w.wait_key::uuid), array_agg({schema}.job_v1(w::{schema}.node_runs)) filter (where w.status = 'queued')
    into v_result.executions, v_result.jobs
    from woken w;
    return v_result;
end
$$;

-- NodeTransitions.wake_parents. Returns {at, jobs}.
create function {schema}.wake_parents_v1(p_children json, p_epoch bigint, p_now timestamptz) returns text
language plpgsql
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_now timestamptz := coalesce(p_now, statement_timestamp());
    v_children uuid[] := array(select json_array_elements_text(p_children)::uuid);
begin
    return json_build_object(
        'at', (extract(epoch from v_now) * 1000000)::bigint,
        'jobs', to_json(({schema}.wake_each_v1(v_children, p_epoch, v_now)).jobs)
    )::text;
end
$$;
