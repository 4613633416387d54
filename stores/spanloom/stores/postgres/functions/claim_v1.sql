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
    v_most constant bigint := 4194304;  -- MAX_CLAIM_BYTES
    v_keys {schema}.run_key_v1[];  -- distinct
    v_positions integer[];  -- the first of each key
    v_executions uuid[];
    v_claimed integer[];  -- positions
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
    from (
        select q.execution_id, q.node_id, q.item, min(q.position) as position
        from json_to_recordset(p_keys) as q (position integer, execution_id uuid, node_id text collate "C", item integer)
        group by q.execution_id, q.node_id, q.item
    ) q;

    -- Executions first, in the order of their ids, then the runs, in the order of their keys, as every transition does.
    perform from {schema}.executions where id = any(v_executions) order by id for share;
    if cardinality(v_keys) > 1 then
        perform from {schema}.node_runs n
        join unnest(v_keys) k on n.execution_id = k.execution_id and n.node_id = k.node_id and n.item = k.item
        where n.status = v_queued  -- a run that a record has locked is not queued, so that neither waits for the other
        order by n.execution_id, n.node_id, n.item
        for update of n;
    end if;

    -- The first pass claims. It reads the data of the parents in the same statement: it claims a run only if its snapshot has
    -- it as queued, so that the snapshot has the results that made it ready as well. That holds for a single run too, which
    -- nobody locked before: if the update waits for another transaction, which leaves it queued, such as a sweep that pushes it
    -- again, its parents' results have not changed, as only a transition that locks the execution exclusively changes them.
    -- The second pass, a statement of its own, as the first may have waited for it, finds the claims of an earlier call.
    for v_pass in 1 .. 2 loop
        with claimed as (
            update {schema}.node_runs n
            set status = 'running', fence = n.fence + 1, worker_id = p_worker, claim_reference = v_via, due_at = null,
                started_at = v_now
            from unnest(v_keys, v_positions) k (execution_id, node_id, item, position)
            join {schema}.executions x on x.id = k.execution_id
            where v_pass = 1 and n.execution_id = k.execution_id and n.node_id = k.node_id and n.item = k.item
                and n.status = v_queued and x.status = v_runs
            returning
                k.position, x.id, x.workflow_id, x.version, x.input, x.priority, x.depth, x.parent_id, x.metadata,
                x.trace_parent, x.trace_state, x.caller_span_id, x.created_at,
                n.node_id, n.item, n.node_type, n.queue, n.fence, n.attempt, n.recovery_attempts, n.wait_kind, n.wait_key,
                n.span
        ), noted as (
            insert into {schema}.events (execution_id, xid, kind, node_id, item, attempt, worker_id, at)
            select c.id, pg_current_xact_id()::text::bigint, 'node.started', c.node_id, c.item, c.attempt, p_worker, v_now
            from claimed c
            order by c.id, c.node_id, c.item
        ), granted as (
            select * from claimed
            union all
            select
                k.position, x.id, x.workflow_id, x.version, x.input, x.priority, x.depth, x.parent_id, x.metadata,
                x.trace_parent, x.trace_state, x.caller_span_id, x.created_at,
                n.node_id, n.item, n.node_type, n.queue, n.fence, n.attempt, n.recovery_attempts, n.wait_kind, n.wait_key,
                n.span
            from unnest(v_keys, v_positions) k (execution_id, node_id, item, position)
            join {schema}.executions x on x.id = k.execution_id
            join {schema}.node_runs n on n.execution_id = k.execution_id and n.node_id = k.node_id and n.item = k.item
            where v_pass = 2 and n.status = v_runs and n.claim_reference = v_via and coalesce(n.worker_id, '') = p_worker
        )
        select array_agg(g.position), json_agg(json_build_array(
            g.position,
            json_build_array(
                g.id, g.workflow_id, g.version, g.input, g.priority, g.depth, g.parent_id, g.metadata, g.trace_parent,
                g.trace_state, g.caller_span_id, (extract(epoch from g.created_at) * 1000000)::bigint
            ),
            json_build_array(
                g.node_id, g.item, g.node_type, g.queue, g.fence, g.attempt, g.recovery_attempts,
                case
                    when g.item = 0 then (  -- as inputs_v1, without the cost of a call
                        select json_object_agg(r.node_id, json_build_array(
                            case when r.size > v_most then '' else coalesce(r.data, 'null') end, r.span
                        ))
                        from (
                            select r.*, e.kind, sum(octet_length(r.data)) over () as size
                            from {schema}.workflow_edges e
                            cross join lateral (
                                select r.node_id, r.data, r.status, r.span,
                                    case when r.taken is not null then array(
                                        select json_array_elements_text(r.taken::json)
                                    ) end as taken
                                from {schema}.node_results r
                                where r.execution_id = g.id and r.node_id = e.source and r.item = 0
                                offset 0
                            ) r
                            where e.workflow_id = g.workflow_id and e.version = g.version and e.target = g.node_id
                                and e.source <> '$start'
                        ) r
                        where {schema}.edge_taken_v1(r.status, r.taken, r.kind, g.node_id)
                    )
                end,
                case when g.item > 0 then {schema}.item_data_v1(g.id, g.node_id, g.item) end, g.wait_kind, g.wait_key, g.span
            )
        ))
        into v_claimed, v_claims
        from granted g;
        exit when v_via is null or cardinality(v_claimed) = cardinality(v_keys);
    end loop;

    if coalesce(cardinality(v_claimed), 0) < json_array_length(p_keys) then
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
        from json_to_recordset(p_keys) as k (position integer, execution_id uuid, node_id text collate "C", item integer)
        left join {schema}.node_runs n on n.execution_id = k.execution_id and n.node_id = k.node_id and n.item = k.item
        where v_claimed is null or k.position <> all (v_claimed);
    end if;
    return json_build_object('claims', v_claims, 'refused', v_refused)::text;
end
$$;
