-- Move at most p_limit rows that are due. Returns {at, jobs, moved, more, ended, due_in}: the seconds to the next due row.
-- It never waits: executions and runs that other transactions have locked are left to the next pass, so it can't deadlock.
-- `more` is true only if the limit was reached and this pass moved or deferred a row; locked rows do not count.

create function {schema}.sweep_v1(
    p_heads json, p_epoch bigint, p_limit integer, p_lost_job_after_seconds double precision, p_now timestamptz
) returns text
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
    v_lost_job_after interval := p_lost_job_after_seconds * interval '1 second';
    v_seen integer := 0;
    v_touched integer := 0;
    v_number integer;
    v_jobs json[] := '{}';
    v_causes text[] := '{}';
    v_ended uuid[] := '{}';
    v_begun uuid[] := '{}';
    v_children uuid[];
    v_woken {schema}.control_v1;
    v_error text;
    v_keys {schema}.run_key_v1[];
    v_executions uuid[];
    v_new_jobs json[];
    v_new_causes text[];
    r record;
begin
    update {schema}.workers set released_at = v_now
    where id in (
        select id from {schema}.workers where released_at is null and lease_until <= v_now for update skip locked
    );
    delete from {schema}.workers
    where id in (
        select w.id from {schema}.workers w
        where w.released_at < v_now - interval '1 hour'
            and (w.spans_confirmed_at is null or w.released_at < v_now - interval '1 day')
            and not exists (select from {schema}.node_runs n where n.worker_id = w.id and n.status = 'running')
        for update skip locked
    );

    -- 1. Changes of an execution's status: delayed starts and deadlines.
    for r in
        select execution_id, node_id
        from {schema}.node_runs
        where due_at <= v_now and node_id in ('$start', '$end')
        order by due_at
        limit p_limit
    loop
        v_seen := v_seen + 1;
        perform from {schema}.executions where id = r.execution_id for no key update skip locked;
        continue when not found;
        if r.node_id = '$start' then
            delete from {schema}.node_runs where execution_id = r.execution_id and node_id = '$start' and item = 0;
            continue when not found;
            update {schema}.executions set status = 'running', started_at = v_now where id = r.execution_id;
            v_touched := v_touched + 1;
            v_begun := v_begun || r.execution_id;
            v_causes := v_causes || 'start'::text;
        else
            perform from {schema}.node_runs
            where execution_id = r.execution_id and node_id = '$end' and item = 0 and due_at <= v_now;
            continue when not found;
            v_error := json_build_object(
                'type', 'DeadlineExceeded', 'message', format(
                    'execution %s had not ended %s s after its start', r.execution_id,
                    (select deadline_seconds from {schema}.executions where id = r.execution_id)
                )
            );
            perform {schema}.fail_v1(r.execution_id, v_error, v_error, null, v_now);
            v_touched := v_touched + 1;
            v_ended := v_ended || r.execution_id;
            v_causes := v_causes || 'deadline'::text;
        end if;
    end loop;
    if cardinality(v_begun) > 0 then
        perform {schema}.begin_v1(v_begun, 1, p_epoch, v_now, v_now + v_lost_job_after);
        v_jobs := v_jobs || array(
            select json_build_array(execution_id, node_id, item, node_type, queue, priority, push)
            from {schema}.node_runs where execution_id = any(v_begun) and node_id <> '$end'
        );
    end if;

    -- 2. Ended children, whose parents' runs wait for them. Their rows are locked without waiting, root first.
    v_children := array(
        select execution_id
        from {schema}.node_runs
        where due_at <= v_now and node_id = '$parent'
        order by due_at
        limit greatest(p_limit - v_seen, 0)
    );
    if cardinality(v_children) > 0 then
        v_seen := v_seen + cardinality(v_children);
        v_executions := array(
            select id from {schema}.executions
            where id = any(array(select c.parent_id from {schema}.executions c where c.id = any(v_children)))
            order by id
            for share skip locked
        );
        v_keys := array(
            select row (n.execution_id, n.node_id, n.item)::{schema}.run_key_v1
            from {schema}.executions c
            join {schema}.node_runs n
                on n.execution_id = c.parent_id and n.node_id = c.parent_node_id and n.item = c.parent_item
            where c.id = any(v_children) and n.status = 'waiting'
            for update of n skip locked
        );
        v_children := array(
            select w.execution_id
            from {schema}.executions c
            join {schema}.node_runs w on w.execution_id = c.id and w.node_id = '$parent' and w.item = 0
            left join {schema}.node_runs n
                on n.execution_id = c.parent_id and n.node_id = c.parent_node_id and n.item = c.parent_item
            where c.id = any(v_children) and c.parent_id = any(v_executions) and (
                n.status is distinct from 'waiting'
                or row (n.execution_id, n.node_id, n.item)::{schema}.run_key_v1 = any(v_keys)
            )
            for update of w skip locked
        );
        v_touched := v_touched + cardinality(v_children);
        v_woken := {schema}.wake_each_v1(v_children, p_epoch, v_now);
        v_jobs := v_jobs || v_woken.jobs;
        v_causes := v_causes || array_fill('child'::text, array[coalesce(cardinality(v_woken.executions), 0)]);
    end if;

    -- 3. All other runs: select, lock the executions, lock the runs, check again.
    v_keys := array(
        select row (c.execution_id, c.node_id, c.item)::{schema}.run_key_v1
        from (
            (
                select n.execution_id, n.node_id, n.item
                from {schema}.workers w
                join {schema}.node_runs n on n.worker_id = w.id and n.status = 'running'
                where w.released_at is not null
                limit p_limit
            )
            union
            (
                select execution_id, node_id, item
                from {schema}.node_runs
                where due_at <= v_now and node_id not in ('$start', '$end', '$parent')
                order by due_at
                limit p_limit
            )
            union
            (
                select execution_id, node_id, item
                from {schema}.node_runs
                where status = 'queued' and pushed_epoch < p_epoch
                order by pushed_epoch
                limit p_limit
            )
        ) c
        limit greatest(p_limit - v_seen, 0)
    );
    v_seen := v_seen + cardinality(v_keys);
    v_executions := array(
        select id from {schema}.executions
        where id = any(array(select k.execution_id from unnest(v_keys) k))
        order by id
        for share skip locked
    );
    v_keys := array(
        select row (n.execution_id, n.node_id, n.item)::{schema}.run_key_v1
        from unnest(v_keys) k
        join {schema}.node_runs n on n.execution_id = k.execution_id and n.node_id = k.node_id and n.item = k.item
        where k.execution_id = any(v_executions)
        for update of n skip locked
    );
    with judged as (
        select n.execution_id, n.node_id, n.item, x.status = 'running' as live,
            case
                when n.status = 'running' and w.released_at is not null then 'lost_worker'
                when n.status = 'waiting' and n.due_at <= v_now then n.wait_kind
                when n.status <> 'queued' then null
                when n.push = 0 and n.due_at <= v_now then 'start'
                when n.pushed_epoch < p_epoch then 'lost_redis'
                when n.due_at > v_now then null
                when coalesce(t.key, h.key) is null then 'check'
                when coalesce(t.value, h.value) is null and v_now - n.pushed_at >= v_lost_job_after then 'lost_job'
                when coalesce(t.value, h.value)::timestamptz - n.pushed_at > v_lost_job_after then 'lost_job'
                else 'check'
            end as cause
        from unnest(v_keys) k
        join {schema}.node_runs n on n.execution_id = k.execution_id and n.node_id = k.node_id and n.item = k.item
        join {schema}.executions x on x.id = n.execution_id
        left join {schema}.workers w on w.id = n.worker_id
        left join json_each_text(p_heads) h
            on h.key = n.queue || case n.priority when 'normal' then '' else '.' || n.priority end
        left join json_each_text(p_heads) t  -- of the type's own list beside that one
            on t.key = n.queue || case n.priority when 'normal' then '@' else '.' || n.priority || '@' end || n.node_type
    ), moved as (
        update {schema}.node_runs n
        set status = case when j.live then 'queued' else 'held' end,
            push = case when j.live and j.cause <> 'check' then n.push + 1 else n.push end,
            pushed_epoch = case when j.live and j.cause <> 'check' then p_epoch else n.pushed_epoch end,
            pushed_at = case when j.live and j.cause <> 'check' then v_now else n.pushed_at end,
            -- The time to the next check doubles with each suspicion, so that a backlog is checked ever more rarely. After a
            -- loss it depends neither on the number of pushes alone, which have other causes too, nor on the time in a
            -- backlog. A backlog is checked once a minute at least, as it may still be lost.
            due_at = case when j.live then v_now + case j.cause
                when 'lost_job' then least(interval '5 minutes', greatest(
                    v_lost_job_after, least(2 * (n.due_at - n.pushed_at), v_lost_job_after * power(2, least(n.push, 20)))
                ))
                when 'check' then greatest(v_lost_job_after, least(interval '1 minute', v_now - n.pushed_at))
                else interval '2 seconds'
            end end,
            recovery_attempts = case j.cause when 'lost_worker' then n.recovery_attempts + 1 else n.recovery_attempts end,
            worker_id = case j.cause when 'lost_worker' then null else n.worker_id end,
            claim_reference = case j.cause when 'check' then n.claim_reference end,
            -- The wait kind of a retry is cleared; any other that woke a run stays until its next record.
            wait_kind = case when j.cause <> 'retry' then n.wait_kind end,
            wait_key = case when j.cause <> 'retry' then n.wait_key end
        from judged j
        where n.execution_id = j.execution_id and n.node_id = j.node_id and n.item = j.item and j.cause is not null
        returning n.*, j.cause
    ), noted as (
        insert into {schema}.events (execution_id, xid, kind, node_id, item, attempt, data, at)
        select execution_id, pg_current_xact_id()::text::bigint, 'node.' || status, node_id, item, attempt,
            '{' || case status when 'queued' then '"push":' || push || ',' else '' end || '"because":"' || cause || '"}', v_now
        from moved
        where cause <> 'check' or status = 'held'
        order by execution_id, node_id, item
    )
    select
        array_agg(json_build_array(execution_id, node_id, item, node_type, queue, priority, push, recovery_attempts))
            filter (where status = 'queued' and cause <> 'check'),
        array_agg(cause) filter (where cause <> 'check'),
        count(*)
    into v_new_jobs, v_new_causes, v_number
    from moved;
    v_touched := v_touched + v_number;

    return json_build_object(
        'at', (extract(epoch from v_now) * 1000000)::bigint,
        'jobs', to_json(v_jobs || v_new_jobs),
        'moved', (
            select json_object_agg(m.cause, m.number)
            from (select cause, count(*) as number from unnest(v_causes || v_new_causes) as c (cause) group by cause) m
        ),
        'more', v_seen >= p_limit and v_touched > 0,
        'ended', to_json(v_ended),
        'due_in', extract(epoch from least(
            (select min(due_at) from {schema}.node_runs),
            (select min(lease_until) from {schema}.workers where released_at is null)
        ) - v_now)
    )::text;
end
$$;
