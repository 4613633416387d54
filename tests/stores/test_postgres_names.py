"""Names in SQL: what another role creates on the search_path is never taken for Postgres' own function or operator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

import spanloom.stores
from spanloom.engine.store.models import ExecutionFilter
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import LogLine, NodeLines, Outcome, RecordRequest, Replay, SpanLine, StartResult
from spanloom.engine.store.states import ExecutionStatus
from spanloom.stores import PostgresExecutionStore
from spanloom.stores.migrations import PINNED
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.workflows import chain, diamond, single

pytestmark = pytest.mark.services

_TYPES = (
    "text", "varchar", "integer", "bigint", "uuid", "boolean", "float8", "numeric", "timestamptz", "interval", "json",
    "jsonb", "text[]", "uuid[]", "integer[]",
)  # fmt: skip
_OPERATORS = ("=", "<>", "<", ">", "<=", ">=", "||", "+", "-", "*", "/", "->", "->>", "~", "~~", "<<")
_FUNCTIONS = Path(spanloom.stores.__file__).parent / "postgres" / "functions"
_CALLED = re.compile(r"\b([a-z_]+) ?\(")


def _hostile(connection: psycopg.Connection[tuple[str, ...]]) -> Iterator[str]:
    """Yield statements that overload what our SQL calls, for each type and pairs of types."""
    ours = " ".join(path.read_text() for path in _FUNCTIONS.glob("*.sql"))
    called = [*_CALLED.findall(ours), "concat", "sum", "set_config", "current_setting", "pg_advisory_xact_lock"]
    built_in = connection.execute("select distinct proname from pg_proc where proname = any(%s)", [called])
    names = sorted(name for (name,) in built_in)
    body = "language plpgsql as $$begin raise exception 'hostile: %', '{}'; end$$"
    for name in names:
        for left in _TYPES:
            yield f'create function public."{name}"({left}) returns text {body.format(name)}'
            for right in _TYPES[:6] if left in _TYPES[:6] else (left,):
                yield f'create function public."{name}"({left}, {right}) returns text {body.format(name)}'
    for a, left in enumerate(_TYPES):
        for b, right in enumerate(_TYPES):
            yield f"create function public.of_{a}_{b}({left}, {right}) returns boolean {body.format(left + right)}"
            for sign in _OPERATORS:
                yield f"create operator public.{sign} (function = public.of_{a}_{b}, leftarg={left}, rightarg={right})"
    several = "uuid, text, integer, text, text, text, integer"  # of a job's array, whose function takes any number
    yield f"create function public.json_build_array({several}) returns json {body.format('json_build_array')}"
    yield f"create function public.json_build_array({several}, integer) returns json {body.format('json_build_array')}"


@pytest.fixture(scope="module")
def among_hostile_names(module_postgres_url: str) -> str:
    """A migrated database in whose public schema another role has put all of that."""
    with psycopg.connect(module_postgres_url) as connection:
        connection.execute("create role mallory_of_names")  # of this server, which ends with the tests
        connection.execute("grant create, usage on schema public to mallory_of_names")
        statements = ";".join(_hostile(connection))
        connection.execute("set role mallory_of_names")
        connection.execute(statements)
    return module_postgres_url


def test_the_hostile_names_are_called_by_what_does_not_guard_itself(among_hostile_names: str) -> None:
    with psycopg.connect(among_hostile_names) as connection:
        for guarded in ("'{}'::text[]", "'{}'::uuid[]"):
            with pytest.raises(psycopg.errors.RaiseException, match="hostile: cardinality"), connection.transaction():
                connection.execute(f"select cardinality({guarded})")
        with pytest.raises(psycopg.errors.RaiseException, match="hostile"), connection.transaction():
            connection.execute("select 'a'::text = 'a'::varchar")


@pytest.mark.parametrize("accelerated", [True, False])
def test_no_function_and_no_operator_of_another_role_is_called(among_hostile_names: str, accelerated: bool) -> None:
    store = PostgresExecutionStore(among_hostile_names, accelerated=accelerated)
    store.migrate()
    _use_all_of(store)
    with psycopg.connect(among_hostile_names) as own:
        assert isinstance(store.create_execution(request("diamond"), connection=own), StartResult)
    store.close()
    fresh = PostgresExecutionStore(among_hostile_names, namespace="fresh")
    fresh.migrate()
    fresh.open()
    fresh.close()


def _use_all_of(store: ExecutionStore) -> None:
    """Call every method of the port. What is called by a wrong name raises."""
    driver, now = StoreDriver(store), datetime.now(UTC)
    done = driver.start(diamond(), metadata={"a": "b"}, idempotency_key="k", deadline_seconds=60)
    driver.start("diamond", idempotency_key="k")
    driver.drain()
    # children, items, timers, retries, failures
    parent = driver.start(chain(2))
    child = driver.start_child(parent, "n1", single())
    store.fail_execution(child, '{"type": "Boom", "message": "m"}')
    store.acknowledge_execution(child)
    store.retry_execution(child)
    mapped = driver.start("chain")
    driver.fan_out(mapped, "n1", [1, 2, 3], max_concurrency=2)
    driver.drain()
    waits = driver.start("chain")
    driver.wait(waits, driver.claim(waits, "n1"), delay_seconds=0)
    late = driver.start("single", deadline_seconds=0.001)
    delayed = driver.start("single", delay_seconds=0.001)
    node = driver.claim(waits, "n1") if driver.sweep().jobs else None
    assert node is not None
    driver.record(waits, node, Outcome.RETRY, delay_seconds=0)
    driver.sweep_all()
    driver.drain()
    assert {each.status for each in map(store.get_execution, (done, parent, mapped, delayed)) if each} == {"completed"}
    failing = driver.start("chain")
    claim = driver.claim(failing, "n1")
    line = LogLine("info", "m", now)
    for again in (False, True):
        store.add_logs([NodeLines(failing, "n1", 0, claim.fence, [line], again=again)])
    driver.record(failing, claim, Outcome.FAILED, logs=[line], spans=[_span()])
    driver.record(failing, claim, Outcome.FAILED, logs=[line], spans=[_span()])
    for control in (store.retry_execution, store.pause_execution, store.resume_execution, store.cancel_execution):
        control(failing)
    replay = request("chain", replay=Replay(parent, ["n1"]))
    assert isinstance(store.create_execution(replay), StartResult)
    store.update_node_result(RecordRequest(replay.execution_id, "n2", 0, 0, "", Outcome.COMPLETED, "1"))
    # reads
    page = store.list_executions(limit=1)
    store.list_executions(limit=1, cursor=page.next_cursor)
    wanted = ExecutionFilter(
        workflow_id="w", status=ExecutionStatus.FAILED, parent_execution_id=done, root=True, acknowledged=False,
        created_after=now, created_before=now, metadata={"a": "b"},
    )  # fmt: skip
    store.list_executions(wanted)
    store.get_execution_count(wanted)
    for execution in (done, parent, late):
        store.get_node_results(execution)
        store.get_node_results(execution, ["n1"])
        store.get_attempts(execution, "n1")
        store.get_child_executions(execution)
        store.get_parent_execution(execution)
        events = store.get_events(execution)
        store.get_events(execution, after=events[0].cursor)
    store.add_log(done, line, node_id="top")
    store.get_logs(done, node_id="top")
    store.add_span(done, _span())
    store.update_span(done, "b" * 16, end_ns=3, status="ok")
    store.get_trace(done)
    store.stats()
    store.list_workflows(active=True)
    store.list_workflow_versions("chain")
    store.deactivate_workflow("chain")
    store.activate_workflow("chain")
    store.raise_epoch(store.get_epoch().epoch, "run")
    store.sweep(heads={"default": now, "other": None}, epoch=1)
    store.next_due()
    # leases and retention
    store.list_workers()
    store.renew_lease(driver.worker_id, lease_seconds=30)
    store.list_claims(driver.worker_id)
    store.unregister_worker(driver.worker_id)
    ended = [ExecutionStatus.COMPLETED, ExecutionStatus.CANCELLED]
    assert store.purge_executions(ended_before=now + timedelta(days=1), statuses=ended).executions > 2


def _span() -> SpanLine:
    return SpanLine("a" * 32, "b" * 16, None, "s", "internal", "ok", 1, 2, "n1", 0, 1)


def test_every_function_has_a_pinned_search_path_or_is_called_by_such_functions_only(postgres_url: str) -> None:
    store = PostgresExecutionStore(postgres_url, namespace="fresh")
    store.migrate()
    store.close()
    query = (
        "select proname, array_to_string(proconfig, ';'), prosrc from pg_proc "
        "where pronamespace = 'fresh'::regnamespace"
    )
    with psycopg.connect(postgres_url) as connection:
        found = connection.execute(query).fetchall()
        triggers = "select tgname from pg_trigger t join pg_class c on c.oid = t.tgrelid where not tgisinternal"
        assert connection.execute(f"{triggers} and relnamespace = 'fresh'::regnamespace").fetchall() == []
    pinned = {name for name, settings, _ in found if settings and f"search_path={PINNED}" in settings}
    sources = Path(spanloom.stores.__file__).parent.rglob("*.py")
    called = {name for path in sources for name in re.findall(r"\{schema\}\.(\w+_v\d+)\(", path.read_text())}
    assert called == pinned
    inner = {name for name, *_ in found} - pinned
    bodies = " ".join(body for *_, body in found)
    assert {name for name in inner if f"fresh.{name}(" not in bodies} == set()  # each has a caller, all below these
    assert len(inner) > len(pinned) > 3
