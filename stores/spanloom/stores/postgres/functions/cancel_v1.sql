-- Control.cancel_execution: an execution and its descendants; open runs, running ones too, end as cancelled.

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
    v_refusal text := {schema}.controllable_v1(p_execution, p_expected, array['pending', 'running', 'paused'], 'cancelled');
    v_result {schema}.control_v1;
begin
    if v_refusal = '' then
        -- Statements after the lock: what was recorded while it waited is seen now.
        v_result.executions := {schema}.cancel_each_v1(p_execution || {schema}.descendants_v1(array[p_execution]), v_now);
        perform {schema}.notify_parent_v1(array[p_execution], v_now);
    end if;
    return {schema}.controlled_v1(p_execution, v_refusal, v_result, v_now);
end
$$;
