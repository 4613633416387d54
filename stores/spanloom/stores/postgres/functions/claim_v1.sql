-- Claim queued node runs for a worker. Returns null if the worker's lease is not live, else
-- {claims: [[position, header, node]], refused: [[position, reason]]}. The first of equal keys is claimed, the others are taken.
-- The claims of an earlier call with the same token, whose answer was lost, are returned again.

create function {schema}.claim_v1(p_keys json, p_worker text, p_token text, p_now timestamptz) returns text
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
    -- A variable: for a literal the planner might scan the partial index of all queued runs.
    v_queued constant text := 'queued';
    v_runs constant text := 'running';
    v_via constant text := 'claim ' || p_token;  -- distinct from the references of records: node/item/fence
    v_keys {schema}.run_key_v1[];
    v_positions integer[];
    v_executions uuid[];
    v_claimed {schema}.run_key_v1[];
    v_claims json;
    v_refused json;
begin
    if not {schema}.is_live_v1(p_worker, v_now) then
        return null;
    end if;

    select
        array_agg(row (q.execution_id, q.node_id, q.item)::{schema}.run_key_v1 order by q.execution_id, q.node_id, q.item),
        array_agg(q.position order by q.execution_id, q.node_id, q.item),
        array_agg(distinct q.execution_id)
    into v_keys, v_positions, v_executions
    from json_to_recordset(p_keys) as q (position integer, execution_id uuid, node_id text collate "C", item integer);

    -- Executions first, in the order of their ids, then the runs, in the order of their keys, as every transition does.
    perform from {schema}.executions where id = any(v_executions) order by id for share;
    if cardinality(v_keys) > 1 then
        perform from {schema}.node_runs n
        join unnest(v_keys) k on n.execution_id = k.execution_id and n.node_id = k.node_id and n.item = k.item
        where n.status = v_queued  -- a run that a record has locked is not queued, so that neither waits for the other
        order by n.execution_id, n.node_id, n.item
        for update of n;
    end if;

    with claimed as (
        update {schema}.node_runs n
        set status = 'running', fence = n.fence + 1, worker_id = p_worker, claim_reference = v_via, due_at = null,
            started_at = v_now
        from unnest(v_keys) k
        join {schema}.executions x on x.id = k.execution_id
        where n.execution_id = k.execution_id and n.node_id = k.node_id and n.item = k.item
            and n.status = v_queued and x.status = v_runs
        returning n.execution_id, n.node_id, n.item, n.attempt
    ), noted as (
        insert into {schema}.events (execution_id, xid, kind, node_id, item, attempt, worker_id, at)
        select c.execution_id, pg_current_xact_id()::text::bigint, 'node.started', c.node_id, c.item, c.attempt, p_worker, v_now
        from claimed c
        order by c.execution_id, c.node_id, c.item
    )
    select array_agg(row (c.execution_id, c.node_id, c.item)::{schema}.run_key_v1) into v_claimed from claimed c;

    if v_via is not null and coalesce(cardinality(v_claimed), 0) < cardinality(v_keys) then
        select array_agg(row (n.execution_id, n.node_id, n.item)::{schema}.run_key_v1) into v_claimed
        from {schema}.node_runs n
        join (select distinct k.execution_id, k.node_id, k.item from unnest(v_keys) k) k
            on n.execution_id = k.execution_id and n.node_id = k.node_id and n.item = k.item
        where n.claim_reference = v_via and coalesce(n.worker_id, '') = p_worker;
    end if;

    if v_claimed is not null then
        select json_agg(json_build_array(
            v_positions[array_position(v_keys, c)],
            json_build_array(
                x.id, x.workflow_id, x.version, x.input, x.priority, x.depth, x.parent_id, x.metadata, x.trace_parent,
                x.trace_state, x.caller_span_id, (extract(epoch from x.created_at) * 1000000)::bigint
            ),
            json_build_array(
                n.node_id, n.item, n.node_type, n.queue, n.fence, n.attempt, n.recovery_attempts,
                case
                    when n.item = 0 and exists (  -- an entry node has no parents: the look costs less than the call
                        select from {schema}.workflow_edges e
                        where e.workflow_id = x.workflow_id and e.version = x.version and e.target = n.node_id
                            and e.source <> '$start'
                    ) then {schema}.inputs_v1(x.id, x.workflow_id, x.version, n.node_id)
                end,
                case when n.item > 0 then {schema}.item_data_v1(x.id, n.node_id, n.item) end, n.wait_kind, n.wait_key,
                n.span
            )
        ))
        into v_claims
        from unnest(v_claimed) c
        join {schema}.executions x on x.id = c.execution_id
        join {schema}.node_runs n on n.execution_id = c.execution_id and n.node_id = c.node_id and n.item = c.item;
    end if;

    if coalesce(cardinality(v_claimed), 0) < cardinality(v_keys) then
        with held as (
            update {schema}.node_runs n
            set status = 'held', claim_reference = null, due_at = null
            from unnest(v_keys) k
            join {schema}.executions x on x.id = k.execution_id
            where n.execution_id = k.execution_id and n.node_id = k.node_id and n.item = k.item
                and n.status = v_queued and x.status <> 'running'
            returning n.execution_id, n.node_id, n.item, n.attempt
        )
        insert into {schema}.events (execution_id, xid, kind, node_id, item, attempt, at)
        select h.execution_id, pg_current_xact_id()::text::bigint, 'node.held', h.node_id, h.item, h.attempt, v_now
        from held h
        order by h.execution_id, h.node_id, h.item;

        select json_agg(json_build_array(
            k.position, case when n.status is null then 'gone' when n.status = 'running' then 'taken' else 'not ready' end
        ))
        into v_refused
        from unnest(v_keys, v_positions) with ordinality k (execution_id, node_id, item, position, number)
        left join {schema}.node_runs n on n.execution_id = k.execution_id and n.node_id = k.node_id and n.item = k.item
        where v_claimed is null
            or row (k.execution_id, k.node_id, k.item)::{schema}.run_key_v1 <> all (v_claimed)
            or k.number > array_position(v_keys, row (k.execution_id, k.node_id, k.item)::{schema}.run_key_v1);
    end if;
    return json_build_object('claims', v_claims, 'refused', v_refused)::text;
end
$$;
