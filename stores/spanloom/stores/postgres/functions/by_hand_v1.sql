-- What operators end by hand: Control.fail_execution, acknowledge_execution and update_node_result.

-- Fail a running or paused execution, as a deadline would. p_brief is what its event tells of the error.
create function {schema}.fail_execution_v1(
    p_execution uuid, p_error text, p_brief text, p_expected integer, p_now timestamptz
) returns text
language plpgsql
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_now timestamptz := coalesce(p_now, statement_timestamp());
    v_refusal text := {schema}.controllable_v1(p_execution, p_expected, array['running', 'paused'], 'failed');
    v_result {schema}.control_v1;
begin
    if v_refusal = '' then
        update {schema}.executions set revision = revision + 1 where id = p_execution;
        perform {schema}.fail_v1(p_execution, p_error, p_brief, null, v_now);
        v_result.executions := array[p_execution];
    end if;
    return {schema}.controlled_v1(p_execution, v_refusal, v_result, v_now);
end
$$;

-- Let a failed execution rest.
create function {schema}.acknowledge_v1(p_execution uuid, p_expected integer, p_now timestamptz) returns text
language plpgsql
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_now timestamptz := coalesce(p_now, statement_timestamp());
    v_refusal text := {schema}.controllable_v1(p_execution, p_expected, array['failed'], null);
    v_revision integer;
begin
    perform from {schema}.executions where id = p_execution and acknowledged_at is not null;
    if found and v_refusal in ('', 'stale') then
        v_refusal := 'so';
    end if;
    if v_refusal = '' then
        update {schema}.executions set acknowledged_at = v_now, revision = revision + 1 where id = p_execution
        returning revision into v_revision;
        perform {schema}.append_events_v1(array[row (
            p_execution, 'execution.acknowledged', null, 0, null, null, '{"revision":' || v_revision || '}'
        )::{schema}.event_v1], v_now);
    end if;
    return {schema}.controlled_v1(p_execution, v_refusal, null, v_now);
end
$$;

-- End an open node run. p_record is one of those that record_v1 takes; answers what that answers, or [why, its status]:
-- unknown (the execution), no node, or refused.
create function {schema}.end_manually_v1(p_record json, p_epoch bigint, p_now timestamptz) returns text
language plpgsql
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_execution constant uuid := p_record ->> 'execution_id';
    v_node constant text := p_record ->> 'node_id';
    v_item constant integer := p_record ->> 'item';
    v_run {schema}.node_runs;
    v_status text;
    x record;
begin
    -- As record_v1 may need it: to share the lock first and upgrade later would deadlock two that do so.
    select workflow_id, version into x from {schema}.executions where id = v_execution for no key update;
    if not found then
        return '["unknown",null]';
    end if;
    select * into v_run from {schema}.node_runs
    where execution_id = v_execution and node_id = v_node and item = v_item and node_id not like '$%'
    for update;
    if not found then
        select status into v_status from {schema}.node_results
        where execution_id = v_execution and node_id = v_node and item = v_item;
        if not found and (v_node like '$%' or not exists (
            select from {schema}.workflow_edges e
            where e.workflow_id = x.workflow_id and e.version = x.version and e.target = v_node
        )) then
            return '["no node",null]';
        end if;
        return json_build_array('refused', coalesce(v_status, 'pending'));
    elsif not (
        v_run.status in ('queued', 'held')
        or v_run.status = 'waiting' and v_run.wait_kind <> 'items'
        or v_run.status = 'running'
            and not {schema}.is_live_v1(v_run.worker_id, coalesce(p_now, statement_timestamp()))
    ) then
        return json_build_array('refused', v_run.status);
    end if;

    update {schema}.node_runs
    set status = 'running', fence = fence + 1, worker_id = null, claim_reference = null, due_at = null
    where execution_id = v_execution and node_id = v_node and item = v_item;
    return {schema}.record_v1(
        json_build_array(p_record::jsonb || jsonb_build_object('fence', v_run.fence + 1, 'worker_id', '')), p_epoch, p_now
    );
end
$$;
