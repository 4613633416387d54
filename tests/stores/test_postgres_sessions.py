"""Postgres sessions: encodings, settings of roles and databases, poolers, and the options of the URL."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import psycopg
import pytest

from spanloom.cli.exit_codes import run
from spanloom.engine.errors import ConfigurationError, StoreUnavailable
from spanloom.engine.store.requests import LogLine, Replay
from spanloom.stores import PostgresExecutionStore, open_store
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.servers import PostgresServer
from spanloom.testing.workflows import chain, single

# ---- the URL ----

_PLAIN = "postgresql://ann@db/shop"


@pytest.mark.parametrize(
    ("options", "prepare", "pool_size", "shown"),
    [
        ("", True, 10, ""),
        ("?prepare=false", False, 10, "?prepare=false"),
        ("?prepare=TRUE&pool_size=3", True, 3, ""),
        ("?pool_size=1&prepare=0&namespace=orders", False, 1, "?namespace=orders&prepare=false"),
        ("?schema=orders", True, 10, "?namespace=orders"),
        ("?sslmode=require&connect_timeout=3&application_name=shop&options=-cjit%3Doff", True, 10, ""),
    ],
)
def test_the_url_takes_the_stores_options_beside_those_of_libpq(
    options: str, prepare: bool, pool_size: int, shown: str
) -> None:
    store = open_store(_PLAIN + options)
    assert isinstance(store, PostgresExecutionStore)
    assert store._connections.prepares is (prepare or None)
    assert store._connections.engine.pool.size() == pool_size  # type: ignore[attr-defined]  # a QueuePool
    assert store.url == _PLAIN + shown


def test_the_url_takes_precedence_over_the_arguments() -> None:
    store = PostgresExecutionStore(_PLAIN + "?pool_size=2&prepare=yes", pool_size=7, prepare=False)
    assert (store._connections.prepares, store._connections.engine.pool.size()) == (True, 2)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("?prepared=false", "unknown option 'prepared'; .*namespace, schema, prepare, pool_size and libpq's .*sslmode"),
        ("?sslmode=require&pool=3", "unknown option 'pool'"),
        ("?prepare=maybe", "sets prepare to 'maybe'; it is true or false"),
        ("?prepare=", "sets prepare to ''"),
        ("?pool_size=0", "sets pool_size to '0'; it is a number from 1"),
        ("?pool_size=-1", "sets pool_size to '-1'"),
        ("?pool_size=many", "sets pool_size to 'many'"),
        ("?namespace=Or-ders", "can't name a Postgres schema"),
    ],
)
def test_a_wrong_option_is_named(options: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        open_store(_PLAIN + options)


@pytest.mark.parametrize("rest", ["pa?ss=s3cret@db/shop", "s3cret?x@db/shop?y=1", "p?s3cret&t@db/shop"])
def test_no_part_of_a_password_is_taken_for_an_option_and_shown(rest: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_store(f"postgresql://ann:{rest}")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("option", ["sslmode=foo", "connect_timeout=abc", "target_session_attrs=x", "service=nowhere"])
def test_an_option_that_libpq_refuses_is_no_outage(option: str) -> None:
    store = open_store(f"postgresql://ann:s3cret@127.0.0.1:1/shop?{option}")
    with pytest.raises(ConfigurationError, match=f"has a wrong option: .*{option.partition('=')[2]}") as refused:
        store.open()
    assert "s3cret" not in str(refused.value)


# ---- encodings ----

_numbers = itertools.count(1)


@contextmanager
def _database(server: PostgresServer, encoding: str) -> Iterator[str]:
    name = f"encoded_{next(_numbers)}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"create database {name} encoding '{encoding}' locale 'C' template template0")
        try:
            yield server.database_url(name)
        finally:
            connection.execute(f"drop database {name} with (force)")


@pytest.mark.services
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_is_not_utf8_is_refused_when_it_is_opened_and_when_it_is_migrated(
    postgres_server: PostgresServer, encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with _database(postgres_server, encoding) as url:
        store = open_store(url)
        for use in (store.open, store.migrate, store.get_execution_count):
            with pytest.raises(ConfigurationError, match=f"has the encoding {encoding}.* create database .* 'UTF8'"):
                use()
        store.close()
        assert run(["migrate", "--store", url]) == 2
        assert f"the encoding {encoding}" in capsys.readouterr().err


@pytest.mark.services
@pytest.mark.parametrize("accelerated", [True, False])
def test_settings_of_a_role_do_not_change_what_is_kept(
    postgres_url: str, accelerated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a database whose sessions write and read values in their own way
    odd = {
        "client_encoding": "'LATIN1'", "datestyle": "'German, DMY'", "intervalstyle": "'sql_standard'",
        "timezone": "'Asia/Kathmandu'", "bytea_output": "'escape'", "extra_float_digits": "-15", "search_path": "''",
        "standard_conforming_strings": "off", "escape_string_warning": "off",
    }  # fmt: skip
    name = urlsplit(postgres_url).path[1:]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        server = connection.info.server_version
        for setting, value in odd.items():
            if server < 190000 or setting not in ("standard_conforming_strings", "escape_string_warning"):
                connection.execute(f"alter database {name} set {setting} = {value}")
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    store = PostgresExecutionStore(postgres_url, accelerated=accelerated)
    # when it does some of everything
    driver = StoreDriver(store)
    at = datetime(2026, 3, 4, 5, 6, 7, 891011, tzinfo=UTC)
    execution = driver.start(chain(2, "zählt"), metadata={"größe": "漢字 \\ 'x'"}, deadline_seconds=1234567.890123)
    node = driver.claim(execution, "n1")
    driver.record(execution, node, data="\\ ' 漢", logs=[LogLine("info", "back\\slash 漢字", at)], successors=("n2",))
    replayed = request("zählt", replay=Replay(execution, ["n1"]))
    store.create_execution(replayed)
    driver.drain()
    # then all of it is read as it was written
    found = store.get_execution(execution)
    assert found is not None
    assert (found.metadata, found.deadline_seconds) == ({"größe": "漢字 \\ 'x'"}, 1234567.890123)
    assert abs(found.created_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert [(line.message, line.at) for line in store.get_logs(execution)] == [("back\\slash 漢字", at)]
    assert store.list_executions(limit=1).next_cursor is not None
    assert all(event.at.utcoffset() == timedelta(0) for event in store.get_events(execution))
    with psycopg.connect(postgres_url, row_factory=psycopg.rows.dict_row) as own:
        within = [request("zählt"), request("zählt", replay=Replay(execution, ["n1"]))]
        assert [getattr(store.create_execution(one, connection=own), "created", one) for one in within] == [True, True]
    store.close()


@pytest.mark.services
@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("search_path", "public, pg_catalog", "search_path .* 'public, pg_catalog'.* leave pg_catalog out"),
        ("default_transaction_isolation", "'repeatable read'", "'repeatable read' by default.* 'read committed'"),
        ("default_transaction_isolation", "serializable", "'serializable' by default"),
    ],
)
def test_a_setting_that_transitions_can_not_work_with_is_named(
    postgres_url: str, setting: str, value: str, words: str
) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"alter database {urlsplit(postgres_url).path[1:]} set {setting} = {value}")
    store = open_store(postgres_url)
    with pytest.raises(ConfigurationError, match=words):
        store.open()
    store.close()


# ---- poolers ----


@pytest.mark.services
@pytest.mark.parametrize(
    "change", ["deallocate all", "deallocate all; prepare _pg3_0 as select 1", "prepare _pg3_7 as select $1::text"]
)
def test_statements_that_another_client_of_a_pooler_prepared_or_dropped_are_explained(
    postgres_url: str, change: str
) -> None:
    store = PostgresExecutionStore(postgres_url, pool_size=1)
    store.save_workflow(single())
    driver = StoreDriver(store)
    driver.start("single")
    # when the session is not this client's alone, as behind a pooler of transactions
    with store._connections.engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)
        for number in range(8):
            raw.pgconn.exec_(change.replace("_pg3_7", f"_pg3_{number}").encode())
    with pytest.raises(StoreUnavailable, match=r"a pooler such as PgBouncer .* add \?prepare=false"):
        for _ in range(8):
            driver.start("single")
            driver.drain()
    store.close()
