-- Create executions, each whole or not at all. Returns {at, answers: [[code, execution, version, jobs]]} in the order
-- of the requests. It does not support replays.
-- With p_outbox (the caller's own transaction) no jobs are returned: the sweep makes the first push after the commit.

create function {schema}.start_v1(p_requests json, p_epoch bigint, p_outbox boolean, p_now timestamptz) returns text
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
    v_codes text[] := '{}';
    v_ids uuid[] := '{}';
    v_versions integer[] := '{}';
    v_begun uuid[] := '{}';
    v_events {schema}.event_v1[] := '{}';
    v_delayed boolean;
    v_owner record;
    v_push constant integer := case when p_outbox then 0 else 1 end;
    v_due constant timestamptz := case when p_outbox then v_now else v_now + interval '2 seconds' end;
    v_answer text;
    r record;
begin
    for r in
        select q.*, w.id is not null as known, w.active, v.version as found
        from json_to_recordset(p_requests) as q (
            position integer, id uuid, workflow_id text, version integer, input text, priority text,
            delay_seconds double precision, deadline_seconds double precision, key text, input_hash text,
            key_ttl_seconds double precision, metadata text, trace_parent text, trace_state text, caller_span_id text,
            parent_id uuid, parent_node_id text, parent_item integer, parent_fence bigint, depth integer
        )
        left join {schema}.workflows w on w.id = q.workflow_id
        left join {schema}.workflow_versions v
            on v.workflow_id = q.workflow_id and v.version = coalesce(q.version, w.latest_version)
        order by q.workflow_id, q.key, q.position  -- all transactions lock keys in one order
    loop
        v_ids[r.position] := r.id;
        v_versions[r.position] := r.found;
        if r.found is null or not r.active then
            -- A start that is sent again gets its answer even if its workflow has changed or gone.
            select k.execution_id, k.input_hash into v_owner
            from {schema}.idempotency_keys k
            where k.workflow_id = r.workflow_id and k.key = r.key and (k.expires_at is null or k.expires_at > v_now);
            if found then
                v_codes[r.position] := case v_owner.input_hash when r.input_hash then 'repeated' else 'conflict' end;
                v_ids[r.position] := v_owner.execution_id;
                v_versions[r.position] := (select version from {schema}.executions where id = v_owner.execution_id);
            else
                v_codes[r.position] := case
                    when not r.known then 'unknown' when r.found is null then 'no version'
                    else 'inactive'
                end;
            end if;
            continue;
        end if;
        v_codes[r.position] := 'repeated';
        if r.key is not null then
            insert into {schema}.idempotency_keys as k (workflow_id, key, input_hash, execution_id, expires_at)
            values (r.workflow_id, r.key, r.input_hash, r.id, v_now + r.key_ttl_seconds * interval '1 second')
            on conflict (workflow_id, key) do update set
                input_hash = case when k.expires_at <= v_now then excluded.input_hash else k.input_hash end,
                execution_id = case when k.expires_at <= v_now then excluded.execution_id else k.execution_id end,
                expires_at = case when k.expires_at <= v_now then excluded.expires_at else k.expires_at end
            returning k.execution_id, k.input_hash into v_owner;
            if v_owner.execution_id <> r.id then
                v_ids[r.position] := v_owner.execution_id;
                if v_owner.input_hash <> r.input_hash then
                    v_codes[r.position] := 'conflict';
                end if;
                v_versions[r.position] := (select version from {schema}.executions where id = v_owner.execution_id);
                continue;
            end if;
        end if;
        v_delayed := r.delay_seconds > 0;
        insert into {schema}.executions (
            id, workflow_id, version, status, revision, priority, input, metadata, parent_id, parent_node_id, parent_item,
            parent_fence, depth, trace_parent, trace_state, caller_span_id, deadline_seconds, created_at, started_at
        )
        values (
            r.id, r.workflow_id, r.found, case when v_delayed then 'pending' else 'running' end, 0, r.priority, r.input,
            r.metadata, r.parent_id, r.parent_node_id, r.parent_item, r.parent_fence, r.depth, r.trace_parent,
            r.trace_state, r.caller_span_id, r.deadline_seconds, v_now, case when not v_delayed then v_now end
        )
        on conflict (id) do nothing;
        if not found then  -- sent again after a lost answer
            continue;
        end if;
        v_codes[r.position] := 'created';
        v_events := v_events || row (
            r.id, 'execution.created', null, 0, null, null,
            '{"version":' || r.found || '}'
        )::{schema}.event_v1;
        if r.metadata <> '{}' then
            insert into {schema}.execution_metadata (execution_id, key, value, created_at, workflow_id)
            select r.id, m.key, m.value, v_now, r.workflow_id from json_each_text(r.metadata::json) m;
        end if;
        if v_delayed then
            insert into {schema}.node_runs (
                execution_id, node_id, item, status, node_type, queue, priority, pending, taken, fence, attempt, recovery_attempts,
                wait_kind, due_at, push, pushed_epoch
            )
            values (
                r.id, '$start', 0, 'waiting', '$start', '', r.priority, 0, 0, 0, 1, 0,
                'timer', v_now + r.delay_seconds * interval '1 second', 0, 0
            );
        else
            v_begun := v_begun || r.id;
        end if;
    end loop;

    perform {schema}.append_events_v1(v_events, v_now);
    if cardinality(v_begun) > 0 then
        perform {schema}.begin_v1(v_begun, v_push, p_epoch, v_now, v_due);
    end if;

    select json_build_object(
        'at', (extract(epoch from v_now) * 1000000)::bigint,
        'answers', json_agg(json_build_array(a.code, a.id, a.version, j.jobs) order by a.position)
    )::text
    into v_answer
    from unnest(v_codes, v_ids, v_versions) with ordinality a (code, id, version, position)
    left join lateral (
        select json_agg(json_build_array(n.execution_id, n.node_id, n.item, n.node_type, n.queue, n.priority, n.push)) as jobs
        from {schema}.node_runs n
        where a.code = 'created' and not p_outbox and n.execution_id = a.id
            and n.pending = 0 and n.node_id not in ('$start', '$end')  -- ready
    ) j on true;
    return v_answer;
end
$$;
