-- Cancel an execution; its open runs, running ones too, end as cancelled. Answers [what, number]: unknown, stale (with the
-- revision), cancelled (it was before), done, or the status that forbids it.

create function {schema}.cancel_v1(p_execution uuid, p_expected integer, p_now timestamptz) returns text
language plpgsql
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_now timestamptz := coalesce(p_now, statement_timestamp());
    x record;
begin
    select status, revision into x from {schema}.executions where id = p_execution for no key update;
    if not found then
        return '["unknown",0]';
    elsif x.status = 'cancelled' then
        return '["cancelled",0]';
    elsif p_expected <> x.revision then
        return json_build_array('stale', x.revision);
    elsif x.status not in ('pending', 'running', 'paused') then
        return json_build_array(x.status, x.revision);
    end if;

    -- A statement after the lock: what was recorded while it waited is seen now.
    with gone as (
        delete from {schema}.node_runs where execution_id = p_execution
        returning node_id, item, node_type, attempt, losses, fence, worker_id, started_at
    ), kept as (
        insert into {schema}.node_results (
            execution_id, node_id, item, node_type, status, attempt, losses, fence, worker_id, started_at, ended_at
        )
        select p_execution, node_id, item, node_type, 'cancelled', attempt, losses, fence, worker_id, started_at, v_now
        from gone
        where node_id not in ('$start', '$end')
        returning node_id, item, attempt, worker_id
    )
    insert into {schema}.events (execution_id, xid, kind, node_id, item, attempt, worker_id, data, at)
    select p_execution, pg_current_xact_id()::text::bigint, n.kind, n.node_id, n.item, n.attempt, n.worker_id, n.data, v_now
    from (
        select 'node.cancelled' as kind, node_id, item, attempt, worker_id, null as data from kept
        union all
        select 'execution.cancelled', null, 0, null, null, '{"revision":' || x.revision + 1 || '}'
    ) n
    order by n.node_id nulls last, n.item;

    update {schema}.executions set status = 'cancelled', revision = revision + 1, ended_at = v_now where id = p_execution;
    return json_build_array('done', x.revision + 1);
end
$$;
