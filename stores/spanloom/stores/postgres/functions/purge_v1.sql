-- Retention.purge_executions. Answers [executions, keys, more].
-- It never waits: a family of which someone else holds a row is left for another time.

-- Lock a family for its end, root first, and say who belongs to it; null if someone holds one of it, or if one of it has not
-- ended before p_before.
create function {schema}.ended_family_v1(p_root uuid, p_statuses text[], p_before timestamptz) returns uuid[]
language plpgsql
as $$
declare
    v_family uuid[];
    v_locked uuid[];
begin
    -- Looked at before it is locked, so that nobody waits for a family that stays; and again once nothing can change.
    for pass in 1 .. 2 loop
        with recursive family (id, depth, ended) as (
            select x.id, 0, x.ended_at < p_before and x.status = any(p_statuses)
            from {schema}.executions x
            where x.id = p_root
            union all
            select c.id, f.depth + 1, c.ended_at < p_before and c.status in ('completed', 'failed', 'cancelled')
            from family f
            cross join lateral (
                select x.id, x.ended_at, x.status
                from {schema}.executions x
                where x.parent_id = f.id and x.parent_id is not null
                offset 0
            ) c
        )
        select array_agg(f.id order by f.depth, f.id) into v_family
        from family f
        having bool_and(coalesce(f.ended, false));
        exit when v_family is null or pass = 2;

        v_locked := array(
            select x.id
            from unnest(v_family) with ordinality f (id, number)
            cross join lateral (select x.id from {schema}.executions x where x.id = f.id for update skip locked) x
            order by f.number
        );
        if cardinality(v_locked) < cardinality(v_family) then
            return null;
        end if;
    end loop;
    -- Of those who are locked none gets another child: who is not among them came before.
    return case v_family when v_locked then v_family end;
end
$$;

create function {schema}.purge_v1(p_before timestamptz, p_statuses text[], p_limit integer, p_now timestamptz)
returns text
language plpgsql
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_now timestamptz := coalesce(p_now, statement_timestamp());
    v_gone uuid[] := '{}';
    v_family uuid[];
    v_keys integer;
    v_expired integer;
    v_named integer;
    r record;
begin
    for r in
        select id
        from {schema}.executions
        where parent_id is null and ended_at is not null and ended_at < p_before and status = any(p_statuses)
        order by ended_at
    loop
        exit when cardinality(v_gone) >= p_limit;
        v_family := {schema}.ended_family_v1(r.id, p_statuses, p_before);
        continue when v_family is null;
        -- A start that repeats one of its keys holds that until it is answered.
        select count(*), count(l.key) into v_keys, v_named
        from {schema}.idempotency_keys k
        left join lateral (
            select o.key from {schema}.idempotency_keys o
            where o.workflow_id = k.workflow_id and o.key = k.key
            for update skip locked
        ) l on true
        where k.execution_id = any(v_family);
        v_gone := v_gone || case when v_keys = v_named then v_family else '{}' end;
    end loop;

    with expired as (
        delete from {schema}.idempotency_keys k
        using (
            select workflow_id, key
            from {schema}.idempotency_keys
            where expires_at is not null and expires_at <= v_now
            order by expires_at
            limit p_limit
            for update skip locked
        ) e
        where k.workflow_id = e.workflow_id and k.key = e.key
        returning 1
    )
    select count(*) into v_expired from expired;
    delete from {schema}.idempotency_keys where execution_id = any(v_gone);
    get diagnostics v_named = row_count;

    if cardinality(v_gone) > 0 then
        delete from {schema}.execution_metadata m
        using (
            select x.id, p.key, p.value
            from {schema}.executions x
            cross join lateral json_each_text(x.metadata::json) p
            where x.id = any(v_gone) and x.metadata <> '{}'
            offset 0
        ) p
        where m.key = p.key and m.value = p.value and m.execution_id = p.id;
        delete from {schema}.node_runs where execution_id = any(v_gone);
        delete from {schema}.node_results where execution_id = any(v_gone);
        delete from {schema}.node_items where execution_id = any(v_gone);
        delete from {schema}.logs where execution_id = any(v_gone);
        delete from {schema}.spans where execution_id = any(v_gone);
        delete from {schema}.span_exports where execution_id = any(v_gone);
        delete from {schema}.events where execution_id = any(v_gone);
        delete from {schema}.executions where id = any(v_gone);
    end if;
    return json_build_array(
        cardinality(v_gone), v_expired + v_named, cardinality(v_gone) >= p_limit or v_expired >= p_limit
    );
end
$$;
