"""What is particular to the Postgres store: its URL, its connections, and a caller's own transaction."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import urlencode, urlsplit

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.rows import dict_row

from spanloom.engine.errors import (
    ConfigurationError,
    PayloadRejected,
    StoreRefused,
    StoreUnavailable,
    UnknownWorkflow,
)
from spanloom.engine.store.requests import LogLine, StartResult
from spanloom.engine.store.states import ExecutionStatus, WaitKind
from spanloom.stores import open_store
from spanloom.stores.postgres import accelerated
from spanloom.stores.postgres.store import PostgresExecutionStore
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.race import race
from spanloom.testing.servers import PostgresServer
from spanloom.testing.workflows import chain, single

SECRET = "s3cret-p@ss"


@pytest.fixture
def store(postgres_url: str) -> Iterator[PostgresExecutionStore]:
    store = PostgresExecutionStore(postgres_url)
    store.save_workflow(single())
    yield store
    store.close()


def _database(url: str) -> str:
    return urlsplit(url).path[1:]


# ---- the URL ----


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ann:s3cret-p%40ss@db:5433/shop", "postgresql://ann@db:5433/shop"),
        ("postgres://ann@db/shop?namespace=orders", "postgresql://ann@db/shop?namespace=orders"),
        ("postgresql://db/shop?password=s3cret-p%40ss&user=ann", "postgresql://ann@db/shop"),
        ("postgresql:///shop?host=/run/pg&port=5433", "postgresql:///shop?host=/run/pg&port=5433"),
        ("postgresql://a,b/shop", "postgresql:///shop?host=a,b"),
    ],
)
def test_the_url_is_shown_without_the_password(url: str, shown: str) -> None:
    assert open_store(url).url == shown


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ann:{SECRET}:{SECRET}@@db:x/shop",
        f"postgresql://ann:{SECRET}@db:port/shop",
        f"postgresql://ann:{SECRET}@[db/shop",
        f"postgresql://ann:{SECRET}@db/shop",
        f"postgresql://db/shop?nosuch={SECRET}",
    ],
)
def test_a_malformed_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="postgresql://user:password@host") as refused:
        PostgresExecutionStore(url)
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("namespace", ["", "Orders", "1st", "pg_mine", "a-b", 'x"; drop', "n" * 64])
def test_a_namespace_that_can_name_no_schema_is_refused(namespace: str) -> None:
    with pytest.raises(ConfigurationError, match="can't name a Postgres schema"):
        PostgresExecutionStore("postgresql://db/shop", namespace=namespace)


def test_a_server_that_is_not_there_is_named_without_the_password() -> None:
    store = open_store("postgresql://ann:s3cret-p%40ss@127.0.0.1:1/shop")
    with pytest.raises(StoreUnavailable, match=r"ann@127\.0\.0\.1:1/shop did not answer") as failed:
        store.open()
    shown = [str(failed.value), repr(failed.value), str(failed.value.__cause__), repr(store.__dict__)]
    assert not any(SECRET in text or "s3cret" in text for text in shown)


def test_namespaces_of_one_database_know_nothing_of_each_other(postgres_url: str) -> None:
    stores = [PostgresExecutionStore(postgres_url, namespace=name) for name in ("spanloom", "other")]
    stores[1].migrate()
    execution = StoreDriver(stores[0]).start(single())
    assert stores[0].get_execution(execution) is not None
    assert stores[1].get_execution(execution) is None
    assert isinstance(stores[1].create_execution(request("single")), UnknownWorkflow)
    assert stores[0].get_epoch().store_id != stores[1].get_epoch().store_id
    for one in stores:
        one.close()


# ---- the connections ----


#: What lets a client notice within 10 to 15 seconds that the network, or the machine of Postgres, is gone.
NOTICING = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}


def _options(store: PostgresExecutionStore) -> dict[str, str]:
    with store._connections.reading() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        known = {option.keyword.decode(): (option.val or b"").decode() for option in driver.pgconn.info}
    return {name: known[name] for name in NOTICING}


def test_a_network_that_is_gone_is_noticed_in_seconds(store: PostgresExecutionStore) -> None:
    assert _options(store) == NOTICING


def test_the_url_says_how_soon_a_network_that_is_gone_is_noticed(postgres_url: str) -> None:
    wanted = {name: str(7 + number) for number, name in enumerate(NOTICING)}
    store = PostgresExecutionStore(f"{postgres_url}&{urlencode(wanted)}")
    assert _options(store) == wanted
    store.close()


@pytest.mark.parametrize("prepare", [True, False])
def test_nothing_is_left_on_a_session(postgres_url: str, prepare: bool) -> None:
    # given a store that has only one connection
    store = PostgresExecutionStore(postgres_url, pool_size=1, prepare=prepare)

    def look(query: str) -> list[object]:
        with store._connections.reading() as connection:
            return list(connection.exec_driver_sql(query).scalars())

    settings = "select name || '=' || setting from pg_settings where source = 'session' order by name"
    before = look(settings)
    # when it has done some of everything
    driver = StoreDriver(store)
    execution = driver.start(chain(3))
    driver.drain()
    store.sweep(heads={}, epoch=1)
    with store.transaction():
        store.add_log(execution, LogLine("info", "m", datetime.now(UTC)))
    # then the session is as it was, and without `prepare` nothing is prepared on it
    assert look(settings) == before
    assert look("select objid from pg_locks where locktype = 'advisory'") == []
    assert look("select relname from pg_class where relpersistence = 't'") == []
    assert bool(look("select name from pg_prepared_statements")) is prepare
    store.close()


def test_a_search_path_that_leads_elsewhere_changes_nothing(postgres_url: str) -> None:
    store = PostgresExecutionStore(postgres_url + "&options=-csearch_path%3Dnowhere")
    driver = StoreDriver(store)
    execution = driver.start(chain(2))
    driver.drain()
    found = store.get_execution(execution)
    assert found is not None
    assert found.status == "completed"
    store.close()


def _terminate(url: str) -> None:
    query = (
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = %s and pid <> pg_backend_pid()"
    )
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(query, [_database(url)])


def test_idle_connections_that_the_server_closed_are_replaced_unnoticed(
    store: PostgresExecutionStore, postgres_url: str
) -> None:
    race([store.stats] * 6)  # so that several connections lie idle
    for _ in range(3):
        _terminate(postgres_url)
        assert isinstance(store.create_execution(request("single")), StartResult)
        _terminate(postgres_url)
        assert store.get_execution_count() > 0


def test_a_connection_lost_in_use_is_told_once(store: PostgresExecutionStore, postgres_url: str) -> None:
    race([store.stats] * 6)
    with pytest.raises(StoreUnavailable, match="did not answer"), store.transaction():
        store.stats()
        _terminate(postgres_url)
        store.create_execution(request("single"))
    assert isinstance(store.create_execution(request("single")), StartResult)


def test_a_store_outlives_a_restart_of_its_server(
    store: PostgresExecutionStore, postgres_server: PostgresServer
) -> None:
    race([store.stats] * 4)
    postgres_server.stop()
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            store.create_execution(request("single"))
        with pytest.raises(StoreUnavailable):
            store.stats()
    postgres_server.start()
    assert isinstance(store.create_execution(request("single")), StartResult)
    store.health()


def test_a_full_pool_says_so(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spanloom.stores.postgres.connections.CHECKOUT_SECONDS", 0.01)
    store = PostgresExecutionStore(postgres_url, pool_size=1)
    with store.transaction():
        (answer,) = race([lambda: _refusal(store)])
    assert "raise the store's pool_size" in answer
    store.close()


def test_a_lease_is_renewed_while_all_connections_of_the_pool_are_in_use(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spanloom.stores.postgres.connections.CHECKOUT_SECONDS", 0.01)
    store = PostgresExecutionStore(postgres_url, pool_size=1)
    store.register_worker("w", name="w", host="h", pid=1, queues=["default"], lease_seconds=15)
    with store.transaction():
        (answer,) = race([lambda: _refusal(store)])  # nobody else gets a connection
        (renewed,) = race([lambda: store.renew_lease("w", lease_seconds=15)])
    assert "raise the store's pool_size" in answer
    assert renewed is True
    store.close()


def test_a_lease_that_is_renewed_in_a_transaction_joins_it(postgres_url: str) -> None:
    store = PostgresExecutionStore(postgres_url)
    store.register_worker("w", name="w", host="h", pid=1, queues=["default"], lease_seconds=15)
    (before,) = store.list_workers()
    with pytest.raises(ZeroDivisionError), store.transaction():
        store.renew_lease("w", lease_seconds=1500)
        raise ZeroDivisionError
    (after,) = store.list_workers()
    assert after == before
    store.close()


def _refusal(store: PostgresExecutionStore) -> str:
    with pytest.raises(StoreUnavailable) as refused:
        store.stats()
    return str(refused.value)


def test_a_forked_child_gets_connections_of_its_own(store: PostgresExecutionStore) -> None:
    execution = StoreDriver(store).start("single")
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def work() -> None:
        store.create_execution(request("single"))
        answers.put((os.getpid(), store.get_execution(execution) is not None))

    child = context.Process(target=work)
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert answers.get() == (child.pid, True)
    assert store.get_execution_count() == 2
    answers.close()


# ---- a caller's own transaction ----


def test_an_execution_starts_if_the_callers_transaction_commits(
    store: PostgresExecutionStore, postgres_url: str
) -> None:
    # given an application's own connection, which reads rows as dicts
    with psycopg.connect(postgres_url, row_factory=dict_row) as connection:
        # when one start is rolled back and another committed
        lost = store.create_execution(request("single"), connection=connection)
        connection.rollback()
        kept = store.create_execution(request("single"), connection=connection)
        assert isinstance(kept, StartResult)
        assert store.get_execution_count() == 0
        connection.commit()
    # then the committed one is there, and its job is owed to the first sweep
    assert isinstance(lost, StartResult)
    assert (lost.jobs, kept.jobs) == ((), ())
    assert store.get_execution(lost.execution_id) is None
    swept = store.sweep(heads={}, epoch=0)
    assert [(job.execution_id, job.node_id, job.push) for job in swept.jobs] == [(kept.execution_id, "only", 1)]
    assert store.sweep(heads={}, epoch=0).jobs == ()


def test_a_sqlalchemy_connection_carries_the_start_in_its_transaction(
    store: PostgresExecutionStore, postgres_url: str
) -> None:
    engine = sa.create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        store.create_execution(request("single"), connection=connection)
        connection.rollback()
        kept = store.create_execution(request("single"), connection=connection)
        connection.commit()
    engine.dispose()
    assert isinstance(kept, StartResult)
    assert [found.id for found in store.list_executions().items] == [kept.execution_id]


def test_what_is_no_connection_is_refused(store: PostgresExecutionStore) -> None:
    with pytest.raises(ConfigurationError, match=r"connection is a builtins\.str; pass a psycopg\.Connection"):
        store.create_execution(request("single"), connection="postgresql://db/shop")


# ---- values that Postgres can't keep ----


def test_one_start_that_can_not_be_kept_fails_itself_only(store: PostgresExecutionStore) -> None:
    huge = {"key": os.urandom(9000).hex()}  # more than an index row may hold
    answers = store.create_executions([request("single"), request("single", metadata=huge), request("single")])
    assert [type(answer) for answer in answers] == [StartResult, PayloadRejected, StartResult]
    assert store.get_execution_count() == 2


def test_a_child_under_an_id_that_was_used_is_refused_and_nothing_is_written(store: PostgresExecutionStore) -> None:
    driver = StoreDriver(store)
    parent, other = driver.start("single"), driver.start("single")
    node = driver.claim(parent, "only")
    before = store.get_events(parent)
    wanted = driver.waiting_for_child(parent, node, request("single", execution_id=other))
    with pytest.raises(StoreRefused, match=f"can't start execution {other} as its child: it was started before"):
        driver.send(wanted)
    assert store.get_events(parent) == before
    assert driver.record(parent, node).ended == "completed"


def test_a_wait_that_the_function_does_not_know_is_recorded_by_the_transitions(
    store: PostgresExecutionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = StoreDriver(store)
    execution = driver.start("single")
    # given a function that knows no timer, and that nobody may call for one
    monkeypatch.setattr(accelerated, "SUPPORTED_WAITS", frozenset())
    function = store._record
    monkeypatch.setattr(store, "_record", "select no_such_function(%s, %s, %s)")
    # when a run waits for one
    assert driver.wait(execution, driver.claim(execution, "only"), delay_seconds=0).recorded
    # then it waits as ever, and what does not wait is recorded by the function
    assert [job.push for job in driver.sweep().jobs] == [2]
    node = driver.claim(execution, "only")
    assert node.woken is WaitKind.TIMER
    monkeypatch.setattr(store, "_record", function)
    assert driver.record(execution, node).ended is ExecutionStatus.COMPLETED


def test_items_come_back_to_the_letter(store: PostgresExecutionStore) -> None:
    driver = StoreDriver(store)
    execution = driver.start("single")
    driver.fan_out(execution, "only", ["a\0b", 1e16, -0.0])
    assert [driver.claim(execution, "only", item).data for item in (2, 3)] == ["1e+16", "-0.0"]
    assert driver.claim(execution, "only", 1).data == '"a\\u0000b"'  # JSON text holds it escaped


def test_a_log_line_with_a_nul_or_half_a_character_is_kept_without_it(store: PostgresExecutionStore) -> None:
    driver = StoreDriver(store)
    execution = driver.start("single")
    said = "nul \0, half \ud800, whole \U0001f600, backslash \\u0000"
    driver.run(execution, "only", logs=[LogLine("info", said, datetime.now(UTC))])
    (line,) = store.get_logs(execution)
    assert line.message == "nul \ufffd, half \ufffd, whole \U0001f600, backslash \\u0000"


def test_a_store_that_is_dropped_without_close_ends_its_sessions(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    def use() -> None:
        PostgresExecutionStore(postgres_url).list_workflows()

    use()
    gc.collect()

    with psycopg.connect(postgres_server.url, autocommit=True) as watcher:
        left = "select count(*) from pg_stat_activity where datname = %s and application_name = 'spanloom'"
        name = psycopg.conninfo.conninfo_to_dict(postgres_url)["dbname"]
        give_up = time.monotonic() + 10
        while watcher.execute(left, [name]).fetchone() != (0,):
            assert time.monotonic() < give_up
            watcher.execute("select pg_sleep(0.01)")


def test_a_sweep_returns_the_time_to_what_is_due_next(store: PostgresExecutionStore) -> None:
    """Only the function knows it: a pass of an idle worker is one round trip."""

    def due_in() -> float:
        return store.sweep(heads={}, epoch=1).due_in_seconds

    assert due_in() == math.inf
    store.create_execution(request("single", None, delay_seconds=600))
    assert 500 < due_in() <= 600
    store.register_worker("w", name="w", host="h", pid=1, queues=["default"], lease_seconds=100)
    assert 50 < due_in() <= 100
    store.unregister_worker("w")
    assert 500 < due_in() <= 600
    store.create_execution(request("single", None, deadline_seconds=300))
    assert due_in() <= 2, "its job is looked for"


def test_a_record_that_spells_its_execution_otherwise_goes_on_to_the_successors(store: PostgresExecutionStore) -> None:
    driver = StoreDriver(store)
    execution = driver.start(chain(2))
    record = driver.outcome(execution, driver.claim(execution, "n1"))

    (answer,) = store.record([record._replace(execution_id=execution.upper())])

    assert [job.node_id for job in answer.jobs] == ["n2"]
