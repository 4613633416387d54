-- Control.retry_execution: a failed execution goes on from where it failed, and failed children with it.

-- What lies downstream of failures that had been handled.
create function {schema}.downstream_of_handled_failures_v1(p_execution {schema}.executions) returns text[]
language plpgsql
as $$
declare
    v_below text[];
begin
    v_below := array(
        with recursive below (node_id) as (
            select e.target
            from {schema}.node_results r
            cross join lateral (
                select e.target from {schema}.workflow_edges e
                where e.workflow_id = p_execution.workflow_id and e.version = p_execution.version and e.source = r.node_id
                offset 0
            ) e
            where r.execution_id = p_execution.id and r.item = 0 and r.status = 'failed' and r.arrived
                and e.target <> '$end'
            union
            select e.target
            from below b
            cross join lateral (
                select e.target from {schema}.workflow_edges e
                where e.workflow_id = p_execution.workflow_id and e.version = p_execution.version and e.source = b.node_id
                offset 0
            ) e
            where e.target <> '$end'
        )
        select node_id from below
    );
    return v_below;
end
$$;

-- Forget all that is known of these nodes. Answers the executions that were cancelled for it.
create function {schema}.reset_v1(p_execution uuid, p_below text[], p_now timestamptz) returns uuid[]
language plpgsql
as $$
declare
    v_children uuid[];
begin
    if cardinality(p_below) = 0 then
        return '{}';
    end if;

    with runs as (
        delete from {schema}.node_runs where execution_id = p_execution and node_id = any(p_below)
        returning node_id, item, attempt, status
    ), results as (
        delete from {schema}.node_results where execution_id = p_execution and node_id = any(p_below)
        returning node_id, item, attempt, status
    ), items as (
        delete from {schema}.node_items where execution_id = p_execution and node_id = any(p_below)
    )
    insert into {schema}.events (execution_id, xid, kind, node_id, item, attempt, at)
    select p_execution, pg_current_xact_id()::text::bigint, 'node.reset', n.node_id, n.item, n.attempt, p_now
    from (select * from runs union all select * from results) n
    where n.status <> 'pending'
    order by n.node_id, n.item;

    v_children := array(
        select id from {schema}.executions where parent_id = p_execution and parent_node_id = any(p_below) order by id
    );
    return {schema}.cancel_each_v1(v_children || {schema}.descendants_v1(v_children), p_now);
end
$$;

-- Make a failed run ready again, or let it wait for its latest child, or go on woken by that. An item begins anew.
-- p_fence is the one under which it failed: with its child it goes on under the next.
create function {schema}.run_again_v1(
    p_run {schema}.node_runs, p_fence bigint, p_epoch bigint, p_now timestamptz
) returns {schema}.control_v1
language plpgsql
as $$
declare
    v_run {schema}.node_runs := p_run;
    v_child record;
    v_result {schema}.control_v1;
begin
    select id, status into v_child
    from {schema}.executions
    where parent_id = v_run.execution_id and parent_node_id = v_run.node_id and parent_item = 0 and v_run.item = 0
        and parent_fence >= p_fence >> 20 << 20  -- one from before a reset of the run is none of its own
    order by created_at desc, id desc
    limit 1;
    v_run.pushed_epoch := p_epoch;
    v_run.pending := 0;
    v_run.taken := 1;
    v_run.attempt := 1;
    v_run.recovery_attempts := 0;
    v_run.status := 'queued';
    if found and v_child.status <> 'cancelled' then
        v_run.wait_kind := 'child';
        v_run.wait_key := v_child.id;
        v_run.fence := p_fence + 1;
        update {schema}.executions set parent_fence = v_run.fence where id = v_child.id;
        if v_child.status <> 'completed' then
            v_run.status := 'waiting';
        end if;
    end if;
    if v_run.status = 'queued' then
        v_run.push := v_run.push + 1;
        v_run.pushed_at := p_now;
        v_run.due_at := p_now + interval '2 seconds';
        v_result.jobs := array[{schema}.job_v1(v_run)];
    end if;
    insert into {schema}.node_runs select v_run.*;
    perform {schema}.append_events_v1(array[row (
        v_run.execution_id, 'node.' || v_run.status, v_run.node_id, v_run.item, 1, null,
        case v_run.status
            when 'queued' then '{"push":' || v_run.push || ',"because":"retried"}'
            else '{"wait_kind":"child","wait_key":"' || v_run.wait_key || '","because":"retried"}'
        end
    )::{schema}.event_v1], p_now);
    if v_run.status = 'waiting' and v_child.status = 'failed' then
        v_result := {schema}.retry_each_v1(v_child.id, p_epoch, p_now);
    end if;
    return v_result;
end
$$;

-- Let a mapped node's failed run wait for its items again: those that failed are started anew, then those that never were.
-- One whose items have all ended well goes on, woken by them.
create function {schema}.items_again_v1(
    p_run {schema}.node_runs, p_bounds json, p_fence bigint, p_epoch bigint, p_now timestamptz
) returns {schema}.control_v1
language plpgsql
as $$
declare
    v_run {schema}.node_runs := p_run;
    v_item {schema}.node_runs;
    v_gone {schema}.node_results[];
    v_items integer[];
    v_step {schema}.control_v1;
    v_result {schema}.control_v1;
begin
    with gone as (
        delete from {schema}.node_results
        where execution_id = v_run.execution_id and node_id = v_run.node_id and item > 0 and status = 'failed'
        returning *
    )
    select array_agg(g::{schema}.node_results order by g.item) into v_gone from gone g;
    v_run.items := (
        select max(item) from {schema}.node_items where execution_id = v_run.execution_id and node_id = v_run.node_id
    );
    v_run.max_concurrency := p_bounds -> 'max_concurrency';
    v_run.tolerated_failures := p_bounds -> 'tolerated_failures';
    v_run.taken := v_run.tolerated_failures;
    v_run.wait_kind := 'items';
    v_run.wait_key := p_bounds ->> 'wait_key';
    v_run.attempt := 1;
    v_run.recovery_attempts := 0;
    v_items := {schema}.next_items_v1(v_run.execution_id, v_run.node_id, 1, v_run.max_concurrency);
    v_run.pending := cardinality(v_items);
    v_run.next_item := coalesce(v_items[cardinality(v_items)], v_run.items) + 1;
    v_run.pushed_epoch := p_epoch;
    v_run.status := case v_run.pending when 0 then 'queued' else 'waiting' end;
    if v_run.status = 'queued' then
        v_run.push := v_run.push + 1;
        v_run.pushed_at := p_now;
        v_run.due_at := p_now + interval '2 seconds';
        v_result.jobs := array[{schema}.job_v1(v_run)];
    end if;
    insert into {schema}.node_runs select v_run.*;
    perform {schema}.append_events_v1(array[row (
        v_run.execution_id, 'node.' || v_run.status, v_run.node_id, 0, 1, null,
        case v_run.status
            when 'queued' then '{"push":' || v_run.push || ',"because":"retried"}'
            else '{"wait_kind":"items","wait_key":' || coalesce(to_json(v_run.wait_key)::text, 'null')
                || ',"items":' || v_run.items || ',"max_concurrency":' || v_run.max_concurrency
                || ',"tolerated_failures":' || v_run.tolerated_failures || ',"because":"retried"}'
        end
    )::{schema}.event_v1], p_now);

    for i in 1 .. cardinality(v_items) loop
        v_item := p_run;
        v_item.item := v_items[i];
        select greatest(max(g.fence), p_fence), coalesce(max(g.push), 0), max(g.span)
        into v_item.fence, v_item.push, v_item.span
        from unnest(v_gone) g where g.item = v_item.item;
        v_step := {schema}.run_again_v1(v_item, 0, p_epoch, p_now);
        v_result.executions := v_result.executions || v_step.executions;
        v_result.jobs := v_result.jobs || v_step.jobs;
    end loop;
    return v_result;
end
$$;

-- Retry one failed execution, whose row and whose descendants' rows the caller holds.
create function {schema}.retry_each_v1(p_execution uuid, p_epoch bigint, p_now timestamptz) returns {schema}.control_v1
language plpgsql
as $$
declare
    x {schema}.executions;
    v_fence bigint;
    v_run {schema}.node_runs;
    v_below text[];
    v_failed {schema}.node_results[];
    v_bounds text;
    v_left integer;
    v_step {schema}.control_v1;
    v_result {schema}.control_v1;
    f record;
begin
    update {schema}.executions
    set status = 'running', revision = revision + 1, error = null, ended_at = null, acknowledged_at = null
    where id = p_execution
    returning * into x;
    v_fence := x.revision::bigint << 20;
    perform {schema}.append_events_v1(
        array[row (x.id, 'execution.retried', null, 0, null, null, '{"revision":' || x.revision || '}')::{schema}.event_v1],
        p_now
    );
    delete from {schema}.node_runs where execution_id = x.id and node_id = '$parent' and item = 0;
    v_below := {schema}.downstream_of_handled_failures_v1(x);
    v_result.executions := x.id || {schema}.reset_v1(x.id, v_below, p_now);
    with gone as (
        delete from {schema}.node_results where execution_id = x.id and item = 0 and status = 'failed' returning *
    )
    select array_agg(g::{schema}.node_results order by g.node_id) into v_failed from gone g;
    -- Of what arrived before, that counts which stays: neither reset nor to run again.
    v_left := {schema}.recount_arrivals_v1(x, v_below, 0, p_epoch, p_now, null);
    -- Runs held because this one had failed as well before they could tell of their child's failure.
    for f in
        update {schema}.node_runs n set status = 'waiting'
        from {schema}.executions c
        where n.execution_id = x.id and n.status = 'held' and n.wait_kind = 'child'
            and c.parent_id = x.id and c.id = n.wait_key::uuid and c.parent_fence = n.fence and c.status = 'failed'
        returning n.node_id, n.item, n.attempt, c.id
    loop
        perform {schema}.append_events_v1(array[row (
            x.id, 'node.waiting', f.node_id, f.item, f.attempt, null,
            '{"wait_kind":"child","wait_key":"' || f.id || '","because":"retried"}'
        )::{schema}.event_v1], p_now);
        v_step := {schema}.retry_each_v1(f.id, p_epoch, p_now);
        v_result.executions := v_result.executions || v_step.executions;
        v_result.jobs := v_result.jobs || v_step.jobs;
    end loop;
    v_result.jobs := v_result.jobs || {schema}.release_held_v1(array[x.id], 'retried', p_epoch, p_now);

    for f in select * from unnest(v_failed) loop
        v_run := null;
        v_run.execution_id := x.id;
        v_run.node_id := f.node_id;
        v_run.item := 0;
        v_run.node_type := f.node_type;
        select e.target_queue into v_run.queue
        from {schema}.workflow_edges e
        where e.workflow_id = x.workflow_id and e.version = x.version and e.target = f.node_id
        limit 1;
        v_run.priority := x.priority;
        v_run.fence := greatest(f.fence, v_fence);
        v_run.push := f.push;
        v_run.span := f.span;
        select data into v_bounds from {schema}.node_items
        where execution_id = x.id and node_id = f.node_id and item = 0;
        if found then
            v_step := {schema}.items_again_v1(v_run, v_bounds::json, v_fence, p_epoch, p_now);
        else
            v_step := {schema}.run_again_v1(v_run, f.fence, p_epoch, p_now);
        end if;
        v_result.executions := v_result.executions || v_step.executions;
        v_result.jobs := v_result.jobs || v_step.jobs;
    end loop;

    if v_left = 0 then
        -- All had ended well, if too late.
        delete from {schema}.node_runs where execution_id = x.id and node_id = '$end' and item = 0;
        update {schema}.executions set status = 'completed', ended_at = p_now where id = x.id;
        perform {schema}.append_events_v1(
            array[row (x.id, 'execution.completed', null, 0, null, null, '{"by":null}')::{schema}.event_v1], p_now
        );
        perform {schema}.notify_parent_v1(array[x.id], p_now);
    end if;
    return v_result;
end
$$;

create function {schema}.retry_v1(p_execution uuid, p_expected integer, p_epoch bigint, p_now timestamptz) returns text
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
    v_result {schema}.control_v1;
begin
    if v_refusal = '' then
        perform {schema}.descendants_v1(array[p_execution]);
        v_result := {schema}.retry_each_v1(p_execution, p_epoch, v_now);
    end if;
    return {schema}.controlled_v1(p_execution, v_refusal, v_result, v_now);
end
$$;
