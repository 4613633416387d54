-- The parts of record_v1: its types, the lines of a record, and the answer to a record that is sent again.

create type {schema}.arrival_v1 as (
    target text collate "C",
    node_type text,
    queue text,
    inputs integer,
    took boolean,
    work integer  -- the number of the work that it comes from
);

create type {schema}.record_batch_v1 as (
    number integer,
    execution_id uuid,
    node_id text collate "C",
    item integer,
    fence bigint,
    worker_id text,
    outcome text,
    data text,
    error text,
    brief text,  -- the part of the error in the event of the execution's failure
    taken text[],
    handled boolean,  -- whether the record has it, or an edge to a successor is taken
    delay_seconds double precision,
    due_at timestamptz,
    wait_kind text,
    wait_key text,
    span text,
    start_ns bigint,  -- of the span, as the two below, if the result keeps it
    end_ns bigint,
    attributes text,
    links text,
    spends_attempt boolean,
    successors text[],
    most_following integer,
    fan boolean,  -- whether each successor has it as its only parent, and its edge is taken
    logs json,
    spans json,
    child json,  -- the argument of start_v1
    fan_out json,  -- {items: [text], max_concurrency, tolerated_failures}
    exclusive boolean,  -- whether it may change the execution's status
    sinks integer,  -- arrivals at $end: 1 or null
    target text collate "C",  -- its successor, with its type, queue and inputs, and whether the edge is taken
    target_type text,
    target_queue text,
    target_inputs integer,
    took boolean,
    arrivals json  -- in place of it, if there are several: [{target, node_type, queue, inputs, took}]
);

-- The end of an item, for its node's run.
create type {schema}.item_end_v1 as (
    node_id text collate "C",
    work integer,
    via text,
    worker_id text,  -- if its worker would go on with this node
    failed boolean
);

-- The consequences of a work, besides arrivals.
create type {schema}.record_result_v1 as (
    work integer,
    answer text,
    next text,
    jobs text,
    events {schema}.event_v1[]
);

create type {schema}.execution_progress_v1 as (
    node_id text,
    node_type text,
    queue text,
    status text,
    pending integer,
    taken integer,
    via text
);

-- Store the log lines and spans of a record, and return their number.
create function {schema}.insert_telemetry_v1(p_execution uuid, p_node text, p_item integer, p_logs json, p_spans json)
returns integer
language plpgsql
as $$
declare
    v_logs integer := 0;
    v_spans integer := 0;
begin
    if p_logs is not null then
        insert into {schema}.logs (execution_id, node_id, item, attempt, level, message, fields, at, trace_id, span_id)
        select p_execution, p_node, p_item, l.attempt, l.level, l.message, l.fields, l.at, l.trace_id, l.span_id
        from json_to_recordset(p_logs) as l (
            attempt integer, level text, message text, fields text, at timestamptz, trace_id text, span_id text
        );
        get diagnostics v_logs = row_count;
    end if;
    if p_spans is not null then
        insert into {schema}.spans (
            execution_id, span_id, trace_id, parent_span_id, node_id, item, attempt, name, kind, status, start_ns, end_ns,
            attributes, links
        )
        select p_execution, s.span_id, s.trace_id, s.parent_span_id, s.node_id, s.item, s.attempt, s.name, s.kind, s.status,
            s.start_ns, s.end_ns, s.attributes, s.links
        from json_to_recordset(p_spans) as s (
            span_id text, trace_id text, parent_span_id text, node_id text, item integer, attempt integer, name text,
            kind text, status text, start_ns bigint, end_ns bigint, attributes text, links text
        )
        on conflict (execution_id, span_id) do update set
            trace_id = excluded.trace_id, parent_span_id = excluded.parent_span_id, node_id = excluded.node_id,
            item = excluded.item, attempt = excluded.attempt, name = excluded.name, kind = excluded.kind,
            status = excluded.status, start_ns = excluded.start_ns, end_ns = excluded.end_ns,
            attributes = excluded.attributes, links = excluded.links;
        get diagnostics v_spans = row_count;
    end if;
    return v_logs + v_spans;
end
$$;

-- Return the status with which an execution ended, and the time in Unix microseconds.
create function {schema}.ended_v1(p_status text, p_at timestamptz) returns text
language sql immutable
as $$
    select '["' || p_status || '",' || (extract(epoch from p_at) * 1000000)::bigint || ']'
$$;

-- A job that was returned before, with the time of its push in Unix microseconds.
create function {schema}.pushed_v1(p_run {schema}.node_runs) returns json
language sql immutable
as $$
    select json_build_array(
        p_run.execution_id, p_run.node_id, p_run.item, p_run.node_type, p_run.queue, p_run.priority, p_run.push,
        p_run.recovery_attempts, (extract(epoch from p_run.pushed_at) * 1000000)::bigint
    )
$$;

-- Keep the spans of a mapped node's items, whose results are about to be deleted.
create function {schema}.keep_item_spans_v1(p_execution uuid, p_node text) returns void
language plpgsql
as $$
begin
    insert into {schema}.spans (
        execution_id, span_id, trace_id, parent_span_id, node_id, item, attempt, name, kind, status, start_ns, end_ns,
        attributes, links
    )
    select r.execution_id, r.span, coalesce(substr(x.trace_parent, 4, 32), ''), substr(x.trace_parent, 37, 16), r.node_id,
        r.item, r.attempt, '', 'attempt', r.status, r.span_start_ns, r.span_end_ns, r.span_attributes, r.span_links
    from {schema}.node_results r
    join {schema}.executions x on x.id = r.execution_id
    where r.execution_id = p_execution and r.node_id = p_node and r.item > 0
        and r.span is not null and r.span_start_ns is not null
    on conflict do nothing;
end
$$;

-- Answer a record that was refused: with the same continuation if it was recorded before, else as not recorded.
create function {schema}.recorded_before_v1(p_work {schema}.record_batch_v1, p_workflow text, p_version integer)
returns text
language plpgsql
as $$
declare
    v_via text := p_work.node_id || '/' || p_work.item || '/' || p_work.fence;
    v_mark text := '"fence":' || p_work.fence || '}';  -- the end of the event of a claim that was given up
    v_status text;
    v_ended text;
    v_next json;
    v_jobs json;
begin
    select status into v_status
    from {schema}.node_results
    where execution_id = p_work.execution_id and node_id = p_work.node_id and item = p_work.item
        and fence = p_work.fence and worker_id = p_work.worker_id;
    if v_status = 'cancelled' then
        -- Nothing follows, but its telemetry is stored once, which the mark ensures.
        update {schema}.node_results set taken = '[]'
        where execution_id = p_work.execution_id and node_id = p_work.node_id and item = p_work.item and taken is null;
        if found then
            perform {schema}.insert_telemetry_v1(p_work.execution_id, p_work.node_id, p_work.item, p_work.logs, p_work.spans);
            if p_work.start_ns is not null then
                update {schema}.node_results
                set span = p_work.span, span_start_ns = p_work.start_ns, span_end_ns = p_work.end_ns,
                    span_attributes = '{"spanloom.node.outcome":"' || p_work.outcome || '"'
                        || case p_work.attributes when '{}' then '}' else ',' || substr(p_work.attributes, 2) end,
                    span_links = p_work.links
                where execution_id = p_work.execution_id and node_id = p_work.node_id and item = p_work.item;
            end if;
        end if;
        return '[true,null,null,null]';
    elsif v_status is distinct from p_work.outcome and (
        p_work.outcome not in ('retry', 'waiting', 'released') or not exists (
            select from {schema}.events e
            where execution_id = p_work.execution_id and node_id = p_work.node_id and item = p_work.item
                and kind = case p_work.outcome when 'retry' then 'node.retrying' else 'node.' || p_work.outcome end
                and worker_id = p_work.worker_id
                and right(data, length(v_mark)) = v_mark
                and not exists (  -- after a reset its fence is stale, whatever its outcome
                    select from {schema}.events r
                    where r.execution_id = e.execution_id and r.node_id = e.node_id and r.item = e.item
                        and r.kind = 'node.reset' and r.seq > e.seq
                )
        )
    ) then
        return '[false,null,null,null]';
    end if;
    select
        json_agg(json_build_array(
            n.node_id, n.item, n.node_type, n.queue, n.fence, n.attempt, n.recovery_attempts,
            case n.item
                when 0 then
                    coalesce({schema}.inputs_v1(n.execution_id, p_workflow, p_version, n.node_id), '{}')
                else '{}'
            end,
            case when n.item > 0 then {schema}.item_data_v1(n.execution_id, n.node_id, n.item) end,
            n.wait_kind, n.wait_key, n.span
        ) order by n.node_id, n.item) filter (where n.status = 'running' and n.worker_id = p_work.worker_id),
        json_agg({schema}.pushed_v1(n)) filter (where n.status = 'queued')
    into v_next, v_jobs
    from {schema}.node_runs n
    where n.execution_id = p_work.execution_id and (
        n.claim_reference = v_via
        or p_work.outcome = 'released'
            and n.node_id = p_work.node_id and n.item = p_work.item and n.fence = p_work.fence
    );
    if p_work.outcome = 'waiting' and p_work.child is not null then
        -- The child's entry nodes, without those that were pushed again.
        select json_agg({schema}.pushed_v1(n) order by n.node_id) into v_jobs
        from {schema}.executions c
        join {schema}.node_runs n on n.execution_id = c.id
        where c.parent_id = p_work.execution_id
            and c.parent_node_id = p_work.node_id and c.parent_item = p_work.item and c.parent_fence = p_work.fence
            and n.status = 'queued' and n.push = 1 and n.fence = 0;
    end if;
    select {schema}.ended_v1(substr(e.kind, 11), coalesce(x.ended_at, e.at)) into v_ended
    from {schema}.events e
    join {schema}.executions x on x.id = e.execution_id
    where e.execution_id = p_work.execution_id and e.kind in ('execution.completed', 'execution.failed')
        and right(e.data, length(v_via) + 8) = '"by":"' || v_via || '"}';
    return json_build_array(true, v_ended::json, v_next, v_jobs);
end
$$;
