-- The items of mapped nodes: the wait of a node's run for them, and the consequences of their ends.
--
-- The node's own run is item 0. While it waits, `pending` counts its open items and `taken` how many more may fail;
-- node_items holds the data of the items, and under item 0 the bounds, which a retry reads.

-- The jobs of queued items, as JSON arrays between commas.
create function {schema}.item_jobs_v1(
    p_run {schema}.node_runs, p_items integer[], p_push integer
) returns text
language sql immutable
as $$
    select string_agg(json_build_array(
        p_run.execution_id, p_run.node_id, i.item, p_run.node_type, p_run.queue, p_run.priority, p_push
    )::text, ',' order by i.item)
    from unnest(p_items) i (item)
$$;

-- Open runs of items of p_run, the node's own. p_workers holds for each the worker that claims it at once; null: none.
create function {schema}.open_items_v1(
    p_run {schema}.node_runs, p_items integer[], p_vias text[], p_workers text[], p_fence bigint, p_ready text,
    p_epoch bigint, p_now timestamptz
) returns {schema}.event_v1[]
language plpgsql
as $$
begin
    insert into {schema}.node_runs (
        execution_id, node_id, item, status, node_type, queue, priority, pending, taken, fence, attempt, recovery_attempts,
        worker_id, claim_reference, due_at, push, pushed_epoch, pushed_at, started_at
    )
    select p_run.execution_id, p_run.node_id, i.item, s.status, p_run.node_type, p_run.queue, p_run.priority, 0, 1,
        p_fence + case s.status when 'running' then 1 else 0 end, 1, 0, i.worker_id, case when s.status <> 'held' then i.via end,
        case s.status when 'queued' then p_now + interval '2 seconds' end,
        case s.status when 'queued' then 1 else 0 end, p_epoch, case s.status when 'queued' then p_now end,
        case s.status when 'running' then p_now end
    from unnest(p_items, p_vias, p_workers) i (item, via, worker_id)
    cross join lateral (select case when i.worker_id is not null then 'running' else p_ready end as status) s;

    return array(
        select row (
            p_run.execution_id,
            case when i.worker_id is not null then 'node.started' else 'node.' || p_ready end,
            p_run.node_id, i.item, 1, i.worker_id,
            case when i.worker_id is null and p_ready = 'queued' then '{"push":1}' end
        )::{schema}.event_v1
        from unnest(p_items, p_workers) with ordinality i (item, worker_id, number)
        order by i.number
    );
end
$$;

-- The claim of an item that a worker claims as it is opened.
create function {schema}.item_claim_v1(p_run {schema}.node_runs, p_item integer, p_fence bigint) returns text
language plpgsql
as $$
begin
    return json_build_array(
        p_run.node_id, p_item, p_run.node_type, p_run.queue, p_fence, 1, 0, json_build_object(),
        {schema}.item_data_v1(p_run.execution_id, p_run.node_id, p_item), null, null
    );
end
$$;

-- Make a node's run, which has just become waiting, wait for the items of its record.
create function {schema}.fan_out_v1(
    p_work {schema}.record_batch_v1, p_via text, p_revision integer, p_epoch bigint, p_now timestamptz
) returns {schema}.record_result_v1
language plpgsql
as $$
declare
    v_fence bigint := p_revision::bigint << 20;
    v_number integer := json_array_length(p_work.fan_out -> 'items');
    v_first integer := least(v_number, (p_work.fan_out ->> 'max_concurrency')::integer);
    v_run {schema}.node_runs;
    v_answer {schema}.record_result_v1;
    v_worker text;
begin
    -- Items of an earlier round are deleted; none of their fences may be used again.
    perform {schema}.keep_item_spans_v1(p_work.execution_id, p_work.node_id);
    with gone as (
        delete from {schema}.node_results
        where execution_id = p_work.execution_id and node_id = p_work.node_id and item > 0
        returning fence
    )
    select greatest(v_fence, max(fence)) into v_fence from gone;
    delete from {schema}.node_items where execution_id = p_work.execution_id and node_id = p_work.node_id;

    insert into {schema}.node_items (execution_id, node_id, item, data)
    select p_work.execution_id, p_work.node_id, 0,
        json_build_object(
            'max_concurrency', p_work.fan_out -> 'max_concurrency', 'tolerated_failures', p_work.fan_out -> 'tolerated_failures', 'wait_key', p_work.wait_key
        )::text
    union all
    select p_work.execution_id, p_work.node_id, i.item, i.data
    from json_array_elements_text(p_work.fan_out -> 'items') with ordinality i (data, item);

    update {schema}.node_runs
    set items = v_number, max_concurrency = (p_work.fan_out ->> 'max_concurrency')::integer,
        tolerated_failures = (p_work.fan_out ->> 'tolerated_failures')::integer, taken = (p_work.fan_out ->> 'tolerated_failures')::integer,
        pending = v_first, next_item = v_first + 1
    where execution_id = p_work.execution_id and node_id = p_work.node_id and item = 0
    returning * into v_run;

    if p_work.node_id = any(p_work.successors) and {schema}.is_live_v1(p_work.worker_id, p_now) then
        v_worker := p_work.worker_id;
        v_answer.next := {schema}.item_claim_v1(v_run, 1, v_fence + 1);
    end if;
    v_answer.events := {schema}.open_items_v1(
        v_run, array(select generate_series(1, v_first)), array_fill(p_via, array[v_first]),
        array[v_worker] || array_fill(null::text, array[v_first - 1]), v_fence, 'queued', p_epoch, p_now
    );
    v_answer.jobs := {schema}.item_jobs_v1(
        v_run, array(select generate_series(case when v_worker is null then 1 else 2 end, v_first)), 1
    );
    return v_answer;
end
$$;

-- The first p_number items from p_from on that have neither an open run nor a result; after a retry there are holes.
create function {schema}.next_items_v1(p_execution uuid, p_node text, p_from integer, p_number integer) returns integer[]
language plpgsql
as $$
declare
    v_items integer[];
begin
    v_items := array(
        select i.item
        from {schema}.node_items i
        where i.execution_id = p_execution and i.node_id = p_node and i.item >= greatest(p_from, 1)
            and not exists (  -- one look-up per item, up to the limit
                select from {schema}.node_runs n
                where n.execution_id = p_execution and n.node_id = p_node and n.item = i.item
                offset 0
            )
            and not exists (
                select from {schema}.node_results r
                where r.execution_id = p_execution and r.node_id = p_node and r.item = i.item
                offset 0
            )
        order by i.item
        limit p_number
    );
    return v_items;
end
$$;

-- Count items' ends at their nodes' runs, summed for each; returns the continuation of each work.
create function {schema}.items_ended_v1(
    p_execution uuid, p_workflow text, p_version integer, p_ends {schema}.item_end_v1[], p_ready text, p_revision integer,
    p_epoch bigint, p_now timestamptz
) returns setof {schema}.record_result_v1
language plpgsql
as $$
declare
    -- An item that follows in a node that is mapped anew must not get a fence of its earlier round either.
    v_fence constant bigint := greatest(
        p_revision::bigint << 20, (select max(split_part(e.via, '/', 3)::bigint) from unnest(p_ends) e)
    );
    v_run {schema}.node_runs;
    v_end {schema}.item_end_v1;
    v_answer {schema}.record_result_v1;
    v_items integer[];
    v_vias text[];
    v_workers text[];
    v_status text;
    g record;
begin
    for g in
        select e.node_id, array_agg(e order by e.work) as ends, count(*)::integer as number,
            (count(*) filter (where e.failed))::integer as failures
        from unnest(p_ends) e
        group by e.node_id
        order by e.node_id
    loop
        update {schema}.node_runs set pending = pending - g.number, taken = taken - g.failures
        where execution_id = p_execution and node_id = g.node_id and item = 0
            and status = 'waiting' and wait_kind = 'items'
        returning * into v_run;
        continue when not found;

        v_items := '{}';
        if v_run.taken >= 0 and v_run.next_item <= v_run.items then
            v_items := {schema}.next_items_v1(
                p_execution, g.node_id, v_run.next_item, v_run.max_concurrency - v_run.pending
            );

            update {schema}.node_runs
            set pending = v_run.pending + cardinality(v_items),
                next_item = coalesce(v_items[cardinality(v_items)], v_run.items) + 1
            where execution_id = p_execution and node_id = g.node_id and item = 0;
        end if;

        if cardinality(v_items) > 0 then
            v_vias := '{}';
            v_workers := '{}';
            for k in 1 .. cardinality(v_items) loop
                v_end := g.ends[least(k, g.number)];
                v_vias[k] := v_end.via;
                v_workers[k] := case
                    when k <= g.number and p_ready = 'queued' and {schema}.is_live_v1(v_end.worker_id, p_now)
                        then v_end.worker_id
                end;
            end loop;
            v_answer := null;
            v_answer.work := g.ends[1].work;
            v_answer.events := {schema}.open_items_v1(
                v_run, v_items, v_vias, v_workers, v_fence, p_ready, p_epoch, p_now
            );
            return next v_answer;
            for k in 1 .. cardinality(v_items) loop
                v_answer := null;
                v_answer.work := g.ends[least(k, g.number)].work;
                if v_workers[k] is not null then
                    v_answer.next := {schema}.item_claim_v1(v_run, v_items[k], v_fence + 1);
                elsif p_ready = 'queued' then
                    v_answer.jobs := {schema}.item_jobs_v1(v_run, v_items[k : k], 1);
                end if;
                return next v_answer;
            end loop;
        elsif v_run.pending = 0 then
            -- None is open and none is left to start: the node's run goes on, woken by its items.
            v_answer := null;
            v_end := null;
            foreach v_end in array g.ends loop
                exit when p_ready = 'queued' and {schema}.is_live_v1(v_end.worker_id, p_now);
            end loop;
            v_status := case
                when p_ready = 'queued' and {schema}.is_live_v1(v_end.worker_id, p_now) then 'running' else p_ready
            end;
            update {schema}.node_runs
            set status = v_status, claim_reference = case when v_status <> 'held' then v_end.via end,
                fence = fence + case v_status when 'running' then 1 else 0 end,
                worker_id = case v_status when 'running' then v_end.worker_id end,
                started_at = case v_status when 'running' then {schema}.transaction_time_v1(p_now) else started_at end,
                push = push + case v_status when 'queued' then 1 else 0 end,
                pushed_epoch = case v_status when 'queued' then p_epoch else pushed_epoch end,
                pushed_at = case v_status when 'queued' then p_now else pushed_at end,
                due_at = case v_status when 'queued' then p_now + interval '2 seconds' end
            where execution_id = p_execution and node_id = g.node_id and item = 0
            returning * into v_run;
            v_answer.work := v_end.work;
            v_answer.events := array[row (
                p_execution, 'node.' || case v_status when 'running' then 'started' else v_status end, g.node_id, 0,
                v_run.attempt, v_run.worker_id,
                case v_status
                    when 'queued' then '{"push":' || v_run.push || ',"because":"items"}'
                    when 'held' then '{"because":"items"}'
                end
            )::{schema}.event_v1];
            if v_status = 'running' then
                v_answer.next := json_build_array(
                    v_run.node_id, 0, v_run.node_type, v_run.queue, v_run.fence, v_run.attempt, v_run.recovery_attempts,
                    coalesce({schema}.inputs_v1(p_execution, p_workflow, p_version, g.node_id), '{}'), null,
                    v_run.wait_kind, v_run.wait_key, v_run.span
                );
            elsif v_status = 'queued' then
                v_answer.jobs := {schema}.job_v1(v_run)::text;
            end if;
            return next v_answer;
        end if;
    end loop;
end
$$;
