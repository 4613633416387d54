-- Control.pause_execution and resume_execution: an execution and its descendants.

-- Pause: what is queued is held. What waits goes on waiting, the deadline too.
create function {schema}.pause_v1(p_execution uuid, p_expected integer, p_now timestamptz) returns text
language plpgsql
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_now timestamptz := coalesce(p_now, statement_timestamp());
    v_refusal text := {schema}.controllable_v1(p_execution, p_expected, array['running'], 'paused');
    v_family uuid[];
    v_result {schema}.control_v1;
begin
    if v_refusal = '' then
        v_family := p_execution || {schema}.descendants_v1(array[p_execution]);
        with paused as (
            update {schema}.executions set status = 'paused', revision = revision + 1
            where id = any(v_family) and status = 'running'
            returning id, revision, depth, created_at
        ), held as (
            update {schema}.node_runs n set status = 'held', claim_reference = null, due_at = null
            from paused p
            where n.execution_id = p.id and n.status = 'queued'
            returning n.execution_id, n.node_id, n.item, n.attempt
        ), noted as (
            insert into {schema}.events (execution_id, xid, kind, node_id, item, attempt, data, at)
            select e.execution_id, pg_current_xact_id()::text::bigint, e.kind, e.node_id, e.item, e.attempt, e.data, v_now
            from (
                select id as execution_id, 'execution.paused' as kind, null as node_id, 0 as item, null::integer as attempt,
                    '{"revision":' || revision || '}' as data
                from paused
                union all
                select execution_id, 'node.held', node_id, item, attempt, null from held
            ) e
            order by e.execution_id, e.node_id nulls first, e.item
        )
        select array_agg(p.id order by p.id = p_execution desc, p.depth, p.created_at, p.id) into v_result.executions from paused p;
    end if;
    return {schema}.controlled_v1(p_execution, v_refusal, v_result, v_now);
end
$$;

-- Queue what is held in these running executions; p_because is what the events say. Answers the jobs.
create function {schema}.release_held_v1(p_executions uuid[], p_because text, p_epoch bigint, p_now timestamptz)
returns json[]
language plpgsql
as $$
declare
    v_jobs json[];
begin
    with released as (
        update {schema}.node_runs
        set status = 'queued', push = push + 1, pushed_epoch = p_epoch, pushed_at = p_now,
            due_at = p_now + interval '2 seconds'
        where execution_id = any(p_executions) and status = 'held'
        returning *
    ), noted as (
        insert into {schema}.events (execution_id, xid, kind, node_id, item, attempt, data, at)
        select execution_id, pg_current_xact_id()::text::bigint, 'node.queued', node_id, item, attempt,
            '{"push":' || push || ',"because":"' || p_because || '"}', p_now
        from released
        order by execution_id, node_id, item
    )
    select coalesce(array_agg({schema}.job_v1(r::{schema}.node_runs) order by r.execution_id, r.node_id, r.item), '{}')
    into v_jobs
    from released r;
    return v_jobs;
end
$$;

-- Resume: what is held is queued. What waits for its time goes on waiting.
create function {schema}.resume_v1(p_execution uuid, p_expected integer, p_epoch bigint, p_now timestamptz) returns text
language plpgsql
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_now timestamptz := coalesce(p_now, statement_timestamp());
    v_refusal text := {schema}.controllable_v1(p_execution, p_expected, array['paused'], 'running');
    v_family uuid[];
    v_result {schema}.control_v1;
begin
    if v_refusal = '' then
        v_family := p_execution || {schema}.descendants_v1(array[p_execution]);
        with resumed as (
            update {schema}.executions set status = 'running', revision = revision + 1
            where id = any(v_family) and status = 'paused'
            returning id, revision, depth, created_at
        ), noted as (
            insert into {schema}.events (execution_id, xid, kind, item, data, at)
            select id, pg_current_xact_id()::text::bigint, 'execution.resumed', 0, '{"revision":' || revision || '}', v_now
            from resumed
        )
        select array_agg(r.id order by r.id = p_execution desc, r.depth, r.created_at, r.id) into v_result.executions from resumed r;
        v_result.jobs := {schema}.release_held_v1(v_result.executions, 'resumed', p_epoch, v_now);
    end if;
    return {schema}.controlled_v1(p_execution, v_refusal, v_result, v_now);
end
$$;
