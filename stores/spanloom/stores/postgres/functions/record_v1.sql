-- Record outcomes of claims and all that follows from them. The records are numbered from 1 in the order of their keys.
-- Returns {at, answers: [[recorded, ended, next, jobs]]} in that order; ended is [status, Unix microseconds].
-- worker_id '' is no worker's, as of a run that is ended by hand.
-- next is a list of [node, item, type, queue, fence, attempt, recovery_attempts, inputs, data, woken, wait_key, span], or null;
-- inputs null: the recorded node is its only parent. A fifth element of an answer is the reason why a child was refused.

create function {schema}.record_v1(p_records json, p_epoch bigint, p_now timestamptz) returns text
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
    v_due timestamptz := v_now + interval '2 seconds';
    v_works {schema}.record_batch_v1[];
    w {schema}.record_batch_v1;
    v_answers text[] := '{}';  -- like the arrays below by number of the work
    v_statuses text[] := '{}';
    v_priorities text[] := '{}';
    v_revisions integer[] := '{}';
    v_workflows text[] := '{}';
    v_versions integer[] := '{}';
    v_queues text[] := '{}';
    v_nexts text[] := '{}';
    v_jobs text[] := '{}';
    v_events {schema}.event_v1[] := '{}';
    v_number integer;
    v_live_of text;  -- the worker of which v_live is
    v_live boolean;
    -- of the current execution
    v_execution uuid;
    v_workflow text;
    v_version integer;
    v_first integer;
    v_last boolean;  -- the current work is its last one
    v_vias text[];  -- the claim reference of each work, for the rows that it makes ready
    v_status text;
    v_priority text;
    v_revision integer;
    v_parent uuid;
    v_base bigint;  -- the fence of new rows
    v_ready text;
    v_arrivals {schema}.arrival_v1[];
    v_sinks integer;  -- arrivals at $end
    v_error text;
    v_brief text;
    v_ended text;
    v_ended_at timestamptz;
    v_ended_by integer;
    v_item_ends {schema}.item_end_v1[];
    -- of one work
    v_queue text;
    v_attempt integer;
    v_next text;
    v_job text;
    v_sequel {schema}.record_result_v1;
    -- of one round of arrivals
    a {schema}.arrival_v1;
    v_landed {schema}.execution_progress_v1[];
    v_skipped {schema}.execution_progress_v1[];
    v_open {schema}.execution_progress_v1[];  -- ready, and not yet claimed or queued
    v_taken {schema}.execution_progress_v1[];  -- that the current work's worker goes on with
    v_skips {schema}.event_v1[];
    v_readies {schema}.event_v1[];
    v_lines integer;  -- an assignment calls a function without the cost of a query
    r record;
begin
    v_works := array(select q from json_populate_recordset(null::{schema}.record_batch_v1, p_records) q);
    v_number := cardinality(v_works);

    -- Every transition locks executions first, in the order of their ids, then the ending runs, in the order of their
    -- keys, then the successors. A record that may change an execution's status (a failure, a way to $end, or a skip, which
    -- may propagate there) locks it exclusively at once: sharing first and upgrading later would deadlock two siblings that fail.
    for i in 1 .. v_number loop
        w := v_works[i];
        continue when w.execution_id = v_execution;
        v_execution := w.execution_id;
        if w.exclusive then
            select status, priority, revision, workflow_id, version
            into v_status, v_priority, v_revision, v_workflow, v_version
            from {schema}.executions where id = w.execution_id for no key update;
        else
            select status, priority, revision, workflow_id, version
            into v_status, v_priority, v_revision, v_workflow, v_version
            from {schema}.executions where id = w.execution_id for share;
        end if;
        v_statuses[i] := v_status;
        v_priorities[i] := v_priority;
        v_revisions[i] := v_revision;
        v_workflows[i] := v_workflow;
        v_versions[i] := v_version;
    end loop;

    v_execution := null;
    for i in 1 .. v_number loop
        w := v_works[i];
        if w.execution_id is distinct from v_execution then
            v_execution := w.execution_id;
            v_first := i;
            v_status := v_statuses[i];
            v_priority := v_priorities[i];
            v_revision := v_revisions[i];
            v_workflow := v_workflows[i];
            v_version := v_versions[i];
            v_base := v_revision::bigint << 20;
            v_last := i = v_number or v_works[i + 1].execution_id <> w.execution_id;

            -- The link of a chain, alone of its execution: the successor is inserted as running under the same worker's
            -- claim, in the statement that ends the run.
            if v_last and w.outcome = 'completed' and w.target_inputs = 1 and w.took and w.target = any(w.successors)
                and v_status = 'running'
            then
                if v_live_of is distinct from w.worker_id then
                    v_live := {schema}.is_live_v1(w.worker_id, v_now);
                    v_live_of := w.worker_id;
                end if;
                if v_live then
                    with ended as (
                        delete from {schema}.node_runs
                        where execution_id = w.execution_id and node_id = w.node_id and item = 0
                            and status = 'running' and fence = w.fence and coalesce(worker_id, '') = w.worker_id
                            and queue = w.target_queue
                        returning node_type, attempt, recovery_attempts, push, started_at
                    ), kept as (
                        insert into {schema}.node_results (
                            execution_id, node_id, item, node_type, status, data, taken, arrived, attempt, recovery_attempts,
                            fence, push, worker_id, span, span_start_ns, span_end_ns, span_attributes, span_links, started_at,
                            ended_at
                        )
                        select w.execution_id, w.node_id, 0, e.node_type, 'completed', w.data,
                            case when w.taken is not null then array_to_json(w.taken)::text end, true, e.attempt,
                            e.recovery_attempts, w.fence, e.push, w.worker_id, w.span, w.start_ns, w.end_ns, w.attributes,
                            w.links, e.started_at, v_now
                        from ended e
                    ), linked as (
                        insert into {schema}.node_runs (
                            execution_id, node_id, item, status, node_type, queue, priority, pending, taken, fence, attempt,
                            recovery_attempts, worker_id, claim_reference, push, pushed_epoch, started_at
                        )
                        select w.execution_id, w.target, 0, 'running', w.target_type, w.target_queue, v_priority, 0, 1,
                            v_base + 1, 1, 0, w.worker_id, w.node_id || '/0/' || w.fence, 0, p_epoch, v_now
                        from ended
                    )
                    select attempt into v_attempt from ended;
                    if found then
                        if w.logs is not null or w.spans is not null then
                            v_lines := {schema}.insert_telemetry_v1(w.execution_id, w.node_id, 0, w.logs, w.spans);
                        end if;
                        v_events := v_events || array[
                            row (w.execution_id, 'node.completed', w.node_id, 0, v_attempt, w.worker_id, null),
                            row (w.execution_id, 'node.started', w.target, 0, 1, w.worker_id, null)
                        ]::{schema}.event_v1[];
                        v_answers[i] := '[true,null,[' || json_build_array(
                            w.target, 0, w.target_type, w.target_queue, v_base + 1, 1, 0, null, null, null, null
                        ) || '],null]';
                        continue;
                    end if;
                end if;
            end if;
            -- A fan-out, alone of its execution: those successors that the worker goes on with are inserted as running, the
            -- others as queued, in the statement that ends the run.
            if v_last and w.fan and v_status = 'running' then
                if v_live_of is distinct from w.worker_id then
                    v_live := {schema}.is_live_v1(w.worker_id, v_now);
                    v_live_of := w.worker_id;
                end if;
                with ended as (
                    delete from {schema}.node_runs
                    where execution_id = w.execution_id and node_id = w.node_id and item = 0
                        and status = 'running' and fence = w.fence and coalesce(worker_id, '') = w.worker_id
                    returning node_type, queue, attempt, recovery_attempts, push, started_at
                ), kept as (
                    insert into {schema}.node_results (
                        execution_id, node_id, item, node_type, status, data, taken, arrived, attempt, recovery_attempts,
                        fence, push, worker_id, span, span_start_ns, span_end_ns, span_attributes, span_links, started_at,
                        ended_at
                    )
                    select w.execution_id, w.node_id, 0, e.node_type, 'completed', w.data,
                        case when w.taken is not null then array_to_json(w.taken)::text end, true, e.attempt,
                        e.recovery_attempts, w.fence, e.push, nullif(w.worker_id, ''), w.span, w.start_ns, w.end_ns,
                        w.attributes, w.links, e.started_at, v_now
                    from ended e
                ), reached as (
                    select f.target, f.node_type, f.queue,
                        case when s.place is not null and f.queue = e.queue and v_live then
                            row_number() over (order by f.queue <> e.queue, s.place nulls last)
                        end as place
                    from ended e
                    cross join json_to_recordset(w.arrivals) f (target text collate "C", node_type text, queue text)
                    left join unnest(w.successors) with ordinality s (node_id, place) on s.node_id = f.target
                ), placed as materialized (
                    select h.*, coalesce(h.place <= w.most_following, false) as goes_on from reached h
                ), linked as (
                    insert into {schema}.node_runs (
                        execution_id, node_id, item, status, node_type, queue, priority, pending, taken, fence, attempt,
                        recovery_attempts, worker_id, claim_reference, push, pushed_epoch, started_at, due_at, pushed_at
                    )
                    select w.execution_id, p.target, 0, case when p.goes_on then 'running' else 'queued' end, p.node_type,
                        p.queue, v_priority, 0, 1, case when p.goes_on then v_base + 1 else v_base end, 1, 0,
                        case when p.goes_on then w.worker_id end, w.node_id || '/0/' || w.fence,
                        case when p.goes_on then 0 else 1 end, p_epoch, case when p.goes_on then v_now end,
                        case when not p.goes_on then v_due end, case when not p.goes_on then v_now end
                    from placed p
                    order by p.target
                )
                select
                    (select e.attempt from ended e),
                    string_agg(json_build_array(
                        p.target, 0, p.node_type, p.queue, v_base + 1, 1, 0, null, null, null, null
                    )::text, ',' order by p.place) filter (where p.goes_on),
                    string_agg(json_build_array(
                        w.execution_id, p.target, 0, p.node_type, p.queue, v_priority, 1
                    )::text, ',' order by p.target) filter (where not p.goes_on),
                    array_agg(
                        case when p.goes_on then
                            row (w.execution_id, 'node.started', p.target, 0, 1, w.worker_id, null)::{schema}.event_v1
                        else
                            row (w.execution_id, 'node.queued', p.target, 0, 1, null, '{"push":1}')::{schema}.event_v1
                        end
                        order by not p.goes_on, p.target
                    )
                into v_attempt, v_next, v_job, v_readies
                from placed p;
                if v_attempt is not null then
                    if w.logs is not null or w.spans is not null then
                        v_lines := {schema}.insert_telemetry_v1(w.execution_id, w.node_id, 0, w.logs, w.spans);
                    end if;
                    v_events := v_events || row (
                        w.execution_id, 'node.completed', w.node_id, 0, v_attempt, nullif(w.worker_id, ''), null
                    )::{schema}.event_v1 || v_readies;
                    v_answers[i] := '[true,null,' || coalesce('[' || v_next || ']', 'null') || ','
                        || coalesce('[' || v_job || ']', 'null') || ']';
                    continue;
                end if;
            end if;
            v_vias := '{}';
            v_item_ends := '{}';
            v_arrivals := '{}';
            v_sinks := 0;
            v_error := null;
            v_ended := null;
        else
            v_last := i = v_number or v_works[i + 1].execution_id <> w.execution_id;
        end if;

        -- 1. The run itself. `coalesce` prevents the planner from scanning all runs of the worker by their index.
        v_vias[i] := w.node_id || '/' || w.item || '/' || w.fence;
        if w.outcome not in ('completed', 'failed', 'skipped') then
            v_sequel := {schema}.wait_v1(
                w, v_vias[i], case when v_error is null then v_status else 'failed' end, v_revision, p_epoch, v_now
            );
            v_vias[i] := null;
            if v_sequel.work is null and cardinality(v_events) > 0 then
                -- An earlier record of this call may be the one that was sent again: its event shows that.
                v_lines := {schema}.append_events_v1(v_events, {schema}.transaction_time_v1(v_now));
                v_events := '{}';
            end if;
            v_answers[i] := case
                when v_sequel.work is null then {schema}.recorded_before_v1(w, v_workflow, v_version) else v_sequel.answer
            end;
            if v_sequel.events is not null then
                v_lines := {schema}.insert_telemetry_v1(w.execution_id, w.node_id, w.item, w.logs, w.spans);
                v_events := v_events || v_sequel.events;
            end if;
        else
            with ended as (
                delete from {schema}.node_runs
                where execution_id = w.execution_id and node_id = w.node_id and item = w.item
                    and status = 'running' and fence = w.fence and coalesce(worker_id, '') = w.worker_id
                returning node_type, queue, attempt, recovery_attempts, push, started_at
            ), kept as (
                insert into {schema}.node_results (
                    execution_id, node_id, item, node_type, status, data, error, taken, arrived, attempt, recovery_attempts, fence,
                    push, worker_id, span, span_start_ns, span_end_ns, span_attributes, span_links, started_at, ended_at
                )
                select w.execution_id, w.node_id, w.item, e.node_type, w.outcome, w.data, w.error,
                    case when w.taken is not null then array_to_json(w.taken)::text end,
                    w.outcome <> 'failed' or w.item > 0 or coalesce(w.handled, false), e.attempt, e.recovery_attempts, w.fence,
                    e.push, nullif(w.worker_id, ''), w.span, w.start_ns, w.end_ns, w.attributes, w.links, e.started_at, v_now
                from ended e
            )
            select queue, attempt into v_queue, v_attempt from ended;
            if not found then
                v_vias[i] := null;
                v_answers[i] := {schema}.recorded_before_v1(w, v_workflow, v_version);
            else
                if w.logs is not null or w.spans is not null then
                    v_lines := {schema}.insert_telemetry_v1(w.execution_id, w.node_id, w.item, w.logs, w.spans);
                end if;
                v_events := v_events || row (
                    w.execution_id, 'node.' || w.outcome, w.node_id, w.item, v_attempt, nullif(w.worker_id, ''),
                    case w.outcome when 'failed' then '{"error":' || coalesce(w.error, '{}') || '}' end
                )::{schema}.event_v1;
                v_queues[i] := v_queue;
                if w.item > 0 then
                    v_item_ends := v_item_ends || row (
                        w.node_id, i, v_vias[i], case when w.node_id = any(w.successors) then w.worker_id end,
                        w.outcome = 'failed'
                    )::{schema}.item_end_v1;
                else
                    -- A failure that no taken edge handles arrives nowhere: its successors are untouched when it is retried.
                    if w.outcome <> 'failed' or w.handled then
                        v_sinks := v_sinks + coalesce(w.sinks, 0);
                        if w.arrivals is not null then
                            v_arrivals := v_arrivals || array(
                                select row (e.target, e.node_type, e.queue, e.inputs, e.took, i)::{schema}.arrival_v1
                                from json_to_recordset(w.arrivals) e (
                                    target text, node_type text, queue text, inputs integer, took boolean
                                )
                            );
                        elsif w.target is not null then
                            v_arrivals := v_arrivals || row (
                                w.target, w.target_type, w.target_queue, w.target_inputs, w.took, i
                            )::{schema}.arrival_v1;
                        end if;
                    end if;
                    if v_error is null then
                        v_ended_by := i;
                        if w.outcome = 'failed' and not coalesce(w.handled, false)
                            and v_status in ('running', 'paused')
                        then
                            v_error := {schema}.error_at_v1(w.node_id, w.error);
                            v_brief := {schema}.error_at_v1(w.node_id, w.brief);
                        end if;
                    end if;
                end if;
            end if;
        end if;
        continue when not v_last;

        -- 2. The execution fails, if it does, before any run is made ready.
        if v_error is not null then
            v_lines := {schema}.append_events_v1(v_events, v_now);
            v_events := '{}';
            perform {schema}.fail_v1(w.execution_id, v_error, v_brief, v_vias[v_ended_by], v_now);
            v_status := 'failed';
            v_ended := 'failed';
            v_ended_at := v_now;
        end if;
        v_ready := case v_status when 'running' then 'queued' else 'held' end;

        -- 3. Items arrive at their nodes' runs.
        if cardinality(v_item_ends) > 0 then
            for v_sequel in
                select * from {schema}.items_ended_v1(
                    w.execution_id, v_workflow, v_version, v_item_ends, v_ready, v_revision, p_epoch, v_now
                )
            loop
                v_events := v_events || v_sequel.events;
                v_nexts[v_sequel.work] := coalesce(v_sequel.next, v_nexts[v_sequel.work]);
                v_jobs[v_sequel.work] := nullif(concat_ws(',', v_jobs[v_sequel.work], v_sequel.jobs), '');
            end loop;
        end if;

        -- 4. Arrivals, round by round: the skips of one round arrive at their own successors in the next. The events are
        -- ordered across the rounds: first skips, then claims, then queued and held runs.
        v_skips := '{}';
        v_readies := '{}';
        v_open := '{}';
        while cardinality(v_arrivals) > 0 loop
            -- All arrivals at one row are summed; the rows are taken in the order of their keys.
            with landed as (
                insert into {schema}.node_runs as o (
                    execution_id, node_id, item, status, node_type, queue, priority, pending, taken, fence, attempt, recovery_attempts,
                    claim_reference, due_at, push, pushed_epoch, pushed_at
                )
                select w.execution_id, g.target, 0, g.status, g.node_type, g.queue, v_priority, g.inputs - g.arrived, g.took,
                    v_base, 1, 0, case when g.status <> 'held' then v_vias[g.work] end, case g.status when 'queued' then v_due end,
                    case g.status when 'queued' then 1 else 0 end, p_epoch, case g.status when 'queued' then v_now end
                from (
                    select target, min(node_type) as node_type, min(queue) as queue, min(inputs) as inputs,
                        count(*) as arrived, count(*) filter (where took) as took, max(work) as work,
                        case when count(*) = min(inputs) and bool_or(took) then v_ready else 'pending' end as status
                    from unnest(v_arrivals)
                    group by target
                ) g
                order by g.target
                on conflict (execution_id, node_id, item) do update set
                    -- excluded.pending is the number of inputs less those that arrive now
                    pending = o.pending + excluded.pending - (
                        select e.target_inputs from {schema}.workflow_edges e
                        where e.workflow_id = v_workflow and e.version = v_version and e.target = excluded.node_id
                        limit 1
                    ),
                    taken = o.taken + excluded.taken,
                    claim_reference = excluded.claim_reference
                returning o.node_id, o.node_type, o.queue, o.status, o.pending, o.taken, o.claim_reference
            )
            select
                coalesce(array_agg(row (d.*)::{schema}.execution_progress_v1) filter (where d.taken = 0), '{}'),
                coalesce(array_agg(row (d.*)::{schema}.execution_progress_v1) filter (where d.taken > 0), '{}')
            into v_skipped, v_landed
            from landed d
            where d.pending = 0;
            v_open := v_open || v_landed;

            v_arrivals := '{}';
            if cardinality(v_skipped) > 0 then
                with gone as (
                    delete from {schema}.node_runs
                    where execution_id = w.execution_id and item = 0
                        and node_id = any(array(select d.node_id from unnest(v_skipped) d))
                    returning node_id, node_type
                )
                insert into {schema}.node_results (
                    execution_id, node_id, item, node_type, status, arrived, attempt, recovery_attempts, fence, push, ended_at
                )
                select w.execution_id, node_id, 0, node_type, 'skipped', true, 1, 0, v_base, 0, v_now from gone;

                v_skips := v_skips || array(
                    select row (w.execution_id, 'node.skipped', d.node_id, 0, null, null, null)::{schema}.event_v1
                    from unnest(v_skipped) d
                );
                select
                    coalesce(array_agg(row (
                        e.target, e.target_type, e.target_queue, e.target_inputs, false, array_position(v_vias, d.via)
                    )::{schema}.arrival_v1) filter (where e.target <> '$end'), '{}'),
                    v_sinks + count(*) filter (where e.target = '$end')
                into v_arrivals, v_sinks
                from unnest(v_skipped) d
                join {schema}.workflow_edges e
                    on e.workflow_id = v_workflow and e.version = v_version and e.source = d.node_id;
            end if;
        end loop;

        -- Work first: each worker may take the first of its wishes that became ready in its queue. A worker whose
        -- lease has lapsed is about to lose its claims: it gets no new one.
        for k in v_first .. i loop
            exit when v_ready = 'held' or cardinality(v_open) = 0;
            continue when v_vias[k] is null or v_nexts[k] is not null or cardinality(v_works[k].successors) = 0;
            v_taken := array(
                select d
                from unnest(v_works[k].successors) with ordinality s (node_id, place)
                join unnest(v_open) d on d.node_id = s.node_id
                where d.queue = v_queues[k] and d.via = v_vias[k]  -- made ready by this record
                order by s.place
                limit v_works[k].most_following
            );
            continue when cardinality(v_taken) = 0 or not {schema}.is_live_v1(v_works[k].worker_id, v_now);
            update {schema}.node_runs
            set status = 'running', fence = v_base + 1, worker_id = v_works[k].worker_id, due_at = null,
                push = 0, pushed_epoch = p_epoch, pushed_at = null,
                started_at = {schema}.transaction_time_v1(v_now), claim_reference = v_vias[k]
            where execution_id = w.execution_id and item = 0
                and node_id = any(array(select d.node_id from unnest(v_taken) d));
            v_open := array(select d from unnest(v_open) d where d.node_id <> all (array(select t.node_id from unnest(v_taken) t)));
            v_readies := v_readies || array(
                select row (w.execution_id, 'node.started', d.node_id, 0, 1, v_works[k].worker_id, null)::{schema}.event_v1
                from unnest(v_taken) d
            );
            -- A statement after the arrival, so that it sees the arrivals of other transactions at this join.
            v_nexts[k] := (
                select string_agg(json_build_array(
                    d.node_id, 0, d.node_type, d.queue, v_base + 1, 1, 0,
                    {schema}.inputs_v1(w.execution_id, v_workflow, v_version, d.node_id), null, null, null
                )::text, ',' order by d.place)
                from unnest(v_taken) with ordinality d
                    (node_id, node_type, queue, status, pending, taken, via, place)
            );
        end loop;

        if cardinality(v_open) > 0 then
            if exists (select from unnest(v_open) d where d.status = 'pending') then
                -- A join whose row existed before: its last input has arrived.
                update {schema}.node_runs
                set status = v_ready, fence = v_base, due_at = case v_ready when 'queued' then v_due end,
                    push = case v_ready when 'queued' then 1 else 0 end, pushed_epoch = p_epoch,
                    pushed_at = case v_ready when 'queued' then v_now end,
                    claim_reference = case v_ready when 'queued' then claim_reference end
                where execution_id = w.execution_id and item = 0 and status = 'pending'
                    and node_id = any(array(select d.node_id from unnest(v_open) d where d.status = 'pending'));
            end if;
            v_readies := v_readies || array(
                select row (
                    w.execution_id, 'node.' || v_ready, d.node_id, 0, 1, null,
                    case v_ready when 'queued' then '{"push":1}' end
                )::{schema}.event_v1
                from unnest(v_open) d
            );
            for r in
                select array_position(v_vias, d.via) as work, string_agg(
                    json_build_array(w.execution_id, d.node_id, 0, d.node_type, d.queue, v_priority, 1)::text, ','
                ) as jobs
                from unnest(v_open) d
                where v_ready = 'queued'
                group by 1
            loop
                v_jobs[r.work] := concat_ws(',', v_jobs[r.work], r.jobs);
            end loop;
        end if;

        if cardinality(v_skips) > 1 then
            v_skips := array(select e from unnest(v_skips) e order by e.node_id);
        end if;
        if cardinality(v_readies) > 1 then
            v_readies := array(select e from unnest(v_readies) e order by e.kind <> 'node.started', e.node_id);
        end if;
        v_events := v_events || v_skips || v_readies;

        -- 5. The execution completes when the last of its sinks has arrived.
        if v_sinks > 0 then
            if v_status in ('running', 'paused') then
                delete from {schema}.node_runs
                where execution_id = w.execution_id and node_id = '$end' and item = 0 and pending <= v_sinks;
                if found then
                    update {schema}.executions set status = 'completed', ended_at = {schema}.transaction_time_v1(v_now) where id = w.execution_id
                    returning parent_id, ended_at into v_parent, v_ended_at;
                    v_events := v_events || row (
                        w.execution_id, 'execution.completed', null, 0, null, null, '{"by":"' || v_vias[v_ended_by] || '"}'
                    )::{schema}.event_v1;
                    v_ended := 'completed';
                    if v_parent is not null then
                        perform {schema}.notify_parent_v1(array[w.execution_id], v_now);
                    end if;
                end if;
            end if;
            if v_ended is distinct from 'completed' then
                update {schema}.node_runs set pending = pending - v_sinks
                where execution_id = w.execution_id and node_id = '$end' and item = 0;
            end if;
        end if;

        for k in v_first .. i loop
            if v_vias[k] is not null and v_works[k].outcome in ('completed', 'failed', 'skipped') then
                v_answers[k] := '[true,'
                    || case when v_ended is not null and k = v_ended_by then {schema}.ended_v1(v_ended, v_ended_at) else 'null' end
                    || ','
                    || coalesce('[' || v_nexts[k] || ']', 'null') || ',' || coalesce('[' || v_jobs[k] || ']', 'null') || ']';
            end if;
        end loop;
    end loop;

    v_lines := {schema}.append_events_v1(v_events, {schema}.transaction_time_v1(v_now));
    return '{"at":' || (extract(epoch from v_now) * 1000000)::bigint || ',"answers":['
        || array_to_string(v_answers, ',') || ']}';
end
$$;
