-- Close a worker's lease and queue again whatever it still held, without a loss. Answers {at, jobs}.

create function {schema}.unregister_worker_v1(p_worker text, p_epoch bigint, p_now timestamptz) returns text
language plpgsql
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_now timestamptz := coalesce(p_now, statement_timestamp());
    v_keys {schema}.run_key_v1[];
    v_jobs json;
begin
    update {schema}.workers set released_at = v_now where id = p_worker and released_at is null;

    v_keys := array(
        select row (execution_id, node_id, item)::{schema}.run_key_v1
        from {schema}.node_runs where worker_id = p_worker and status = 'running'
    );
    perform from {schema}.executions
    where id = any(array(select k.execution_id from unnest(v_keys) k)) order by id for share;
    perform from {schema}.node_runs n
    join unnest(v_keys) k on n.execution_id = k.execution_id and n.node_id = k.node_id and n.item = k.item
    order by n.execution_id, n.node_id, n.item
    for update of n;

    with released as (
        update {schema}.node_runs n
        set status = case x.status when 'running' then 'queued' else 'held' end,
            due_at = case x.status when 'running' then v_now + interval '2 seconds' end,
            -- Nothing is pushed of what is held.
            push = n.push + case x.status when 'running' then 1 else 0 end,
            pushed_epoch = case x.status when 'running' then p_epoch else n.pushed_epoch end,
            pushed_at = case x.status when 'running' then v_now else n.pushed_at end,
            worker_id = null, claim_reference = null
        from unnest(v_keys) k
        join {schema}.executions x on x.id = k.execution_id
        where n.execution_id = k.execution_id and n.node_id = k.node_id and n.item = k.item
            and n.worker_id = p_worker and n.status = 'running'
        returning n.*
    ), noted as (
        insert into {schema}.events (execution_id, xid, kind, node_id, item, attempt, worker_id, data, at)
        select r.execution_id, pg_current_xact_id()::text::bigint, n.kind, r.node_id, r.item, r.attempt, n.worker_id, n.data,
            v_now
        from released r, lateral (
            values
                -- Without the fence that a record's event carries: had its worker sent one, it would be refused now.
                (1, 'node.released', p_worker, '{"because":"retired"}'),
                (
                    2, 'node.' || r.status, null,
                    '{' || case r.status when 'queued' then '"push":' || r.push || ',' else '' end || '"because":"retired"}'
                )
        ) n (number, kind, worker_id, data)
        order by r.execution_id, r.node_id, r.item, n.number
    )
    select json_agg(json_build_array(execution_id, node_id, item, node_type, queue, priority, push, recovery_attempts))
    into v_jobs
    from released
    where status = 'queued';
    return json_build_object('at', (extract(epoch from v_now) * 1000000)::bigint, 'jobs', v_jobs)::text;
end
$$;
