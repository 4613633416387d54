-- Records that do not end a run: released, to be retried, or waiting for a timer, a child or items.

-- Create the child of a record. The run that waits for it is its parent, under the record's fence, and its deadline is
-- no later than its parent's. Returns the answer of start_v1.
create function {schema}.start_child_v1(p_work {schema}.record_batch_v1, p_epoch bigint, p_now timestamptz) returns json
language plpgsql
as $$
declare
    v_left double precision;
    v_answer json;
begin
    select greatest(
        extract(epoch from due_at - p_now) - coalesce((p_work.child ->> 'delay_seconds')::double precision, 0), 0.001
    )
    into v_left
    from {schema}.node_runs
    where execution_id = p_work.execution_id and node_id = '$end' and item = 0 and due_at is not null;
    v_answer := {schema}.start_v1(
        json_build_array(p_work.child::jsonb || jsonb_build_object(
            'parent_id', p_work.execution_id, 'parent_node_id', p_work.node_id, 'parent_item', p_work.item,
            'parent_fence', p_work.fence,
            'deadline_seconds', least((p_work.child ->> 'deadline_seconds')::double precision, v_left)
        )),
        p_epoch, false, p_now
    )::json -> 'answers' -> 0;
    if v_answer ->> 0 in ('unknown', 'no version', 'inactive') then
        raise exception 'the workflow of a child was deactivated as it started' using errcode = 'serialization_failure';
    elsif v_answer ->> 0 = 'conflict' then
        raise exception 'the idempotency key of a child was used with another input'
            using constraint = 'idempotency_keys', detail = v_answer ->> 1;
    elsif v_answer ->> 0 <> 'created' then
        raise exception 'node % of execution % can''t start execution % as its child: it was started before; ask for one '
            'with a new id and without an idempotency key', p_work.node_id, p_work.execution_id, v_answer ->> 1;
    end if;
    return v_answer;
end
$$;

-- The reason why a workflow can't be started, as a code of start_v1; null if it can.
create function {schema}.refusal_v1(p_workflow text, p_version integer) returns text
language plpgsql
as $$
declare
    v_why text;
begin
    select case when v.version is null then 'no version' when not w.active then 'inactive' end into v_why
    from {schema}.workflows w
    left join {schema}.workflow_versions v on v.workflow_id = w.id and v.version = coalesce(p_version, w.latest_version)
    where w.id = p_workflow;
    return case when found then v_why else 'unknown' end;
end
$$;

-- Record an outcome that does not end the run. Returns null if the fence is stale.
create function {schema}.wait_v1(
    p_work {schema}.record_batch_v1, p_via text, p_status text, p_revision integer, p_epoch bigint, p_now timestamptz
) returns {schema}.record_result_v1
language plpgsql
as $$
declare
    w {schema}.record_batch_v1 := p_work;
    v_run {schema}.node_runs;
    -- No child or item starts in an execution that is not running: the run is held, to be claimed and to request it again.
    v_asks_again boolean := p_status <> 'running' and p_work.outcome = 'waiting' and p_work.wait_kind in ('child', 'items');
    v_held boolean := v_asks_again or p_status <> 'running' and p_work.outcome = 'released'
        or p_status not in ('running', 'paused') and p_work.outcome = 'retry';
    v_key text := coalesce(p_work.wait_key, p_work.child ->> 'id');
    v_attempt integer;
    v_why text;
    v_child json;
    v_items {schema}.record_result_v1;
    v_answer {schema}.record_result_v1;
begin
    if v_asks_again then
        w.child := null;
        w.fan_out := null;
    elsif w.child is not null then
        perform from {schema}.node_runs
        where execution_id = w.execution_id and node_id = w.node_id and item = w.item
            and status = 'running' and fence = w.fence and coalesce(worker_id, '') = w.worker_id
        for update;
        if not found then
            return null;
        end if;
        v_why := {schema}.refusal_v1(w.child ->> 'workflow_id', (w.child ->> 'version')::integer);
        if v_why is not null then
            v_answer.work := w.number;
            v_answer.answer := json_build_array(true, null, null, null, v_why);
            return v_answer;
        end if;
    end if;

    -- `coalesce` prevents the planner from scanning all runs of the worker by their index.
    if w.outcome = 'released' or v_asks_again then
        update {schema}.node_runs
        set status = case when v_held then 'held' else 'queued' end,
            due_at = case when not v_held then p_now + interval '2 seconds' end,
            push = case when v_held then push else push + 1 end,  -- a held run is not pushed
            pushed_epoch = case when v_held then pushed_epoch else p_epoch end,
            pushed_at = case when v_held then pushed_at else p_now end,
            worker_id = null, claim_reference = null, span = coalesce(w.span, span)
        where execution_id = w.execution_id and node_id = w.node_id and item = w.item
            and status = 'running' and fence = w.fence and coalesce(worker_id, '') = w.worker_id
        returning * into v_run;
        v_attempt := v_run.attempt;
    else
        update {schema}.node_runs
        set status = case when v_held then 'held' else 'waiting' end,
            wait_kind = case when not v_held then w.wait_kind end,
            wait_key = case when not v_held then v_key end,
            due_at = case when not v_held and w.wait_kind in ('retry', 'timer') then
                coalesce(w.due_at, p_now + w.delay_seconds * interval '1 second')
            end,
            attempt = attempt + case when w.outcome = 'retry' and w.spends_attempt then 1 else 0 end,
            worker_id = null, claim_reference = null, span = coalesce(w.span, span)
        where execution_id = w.execution_id and node_id = w.node_id and item = w.item
            and status = 'running' and fence = w.fence and coalesce(worker_id, '') = w.worker_id
        returning * into v_run;
        v_attempt := v_run.attempt - case when w.outcome = 'retry' and w.spends_attempt then 1 else 0 end;
    end if;
    if v_run.execution_id is null then
        return null;
    end if;

    v_answer.work := w.number;
    v_answer.events := array[row (
        w.execution_id, case w.outcome when 'retry' then 'node.retrying' else 'node.' || w.outcome end,
        w.node_id, w.item, v_attempt, w.worker_id,
        case w.outcome
            when 'retry' then
                '{' || coalesce('"error":' || w.error || ',', '') || '"delay_seconds":' || w.delay_seconds
                || ',"fence":' || w.fence || '}'
            when 'waiting' then
                '{"wait_kind":"' || w.wait_kind || '","wait_key":' || coalesce(to_json(v_key)::text, 'null')
                || coalesce(
                    ',"items":' || json_array_length(w.fan_out -> 'items') || ',"max_concurrency":' || (w.fan_out ->> 'max_concurrency')
                    || ',"tolerated_failures":' || (w.fan_out ->> 'tolerated_failures'), ''
                )
                || ',"fence":' || w.fence || '}'
            else '{"fence":' || w.fence || '}'
        end
    )::{schema}.event_v1];
    if v_held or w.outcome = 'released' then
        v_answer.events := v_answer.events || row (
            w.execution_id, 'node.' || v_run.status, w.node_id, w.item, v_run.attempt, null,
            case w.outcome when 'released' then
                '{' || case when v_held then '' else '"push":' || v_run.push || ',' end || '"because":"released"}'
            end
        )::{schema}.event_v1;
    end if;

    if w.child is not null then
        v_child := {schema}.start_child_v1(w, p_epoch, p_now);
        v_answer.answer := json_build_array(true, null, null, v_child -> 3);
    elsif w.fan_out is not null then
        v_items := {schema}.fan_out_v1(w, p_via, p_revision, p_epoch, p_now);
        v_answer.events := v_answer.events || v_items.events;
        v_answer.answer :=
            '[true,null,' || coalesce('[' || v_items.next || ']', 'null') || ',' || coalesce('[' || v_items.jobs || ']', 'null') || ']';
    else
        v_answer.answer := json_build_array(true, null, null, case when v_run.status = 'queued' then
            json_build_array({schema}.job_v1(v_run))
        end);
    end if;
    return v_answer;
end
$$;
