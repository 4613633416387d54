"""The migrations: they make what schema.py describes, once, whoever calls them and however often."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from spanloom.cli.exit_codes import run
from spanloom.engine.errors import ConfigurationError, StoreNotMigrated
from spanloom.stores import open_store
from spanloom.stores.migrations import current, upgrade
from spanloom.stores.schema import SCHEMA_VERSION, metadata
from spanloom.testing.race import race

SCHEMA = "another"


@pytest.fixture
def sqlite_engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/new.db")
    yield engine
    engine.dispose()


@pytest.fixture
def postgres_engine(postgres_url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    yield engine
    engine.dispose()


def _differences(connection: sa.Connection, schema: str | None) -> list[object]:
    described = sa.MetaData()
    for table in metadata.tables.values():
        table.to_metadata(described, schema=schema)
    options = {
        "compare_type": True,
        "include_schemas": schema is not None,
        "include_name": lambda name, kind, parents: kind != "schema" or name == schema,
        "version_table_schema": schema,
    }
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), described))


def test_a_migrated_sqlite_file_is_as_the_tables_are_described(sqlite_engine: sa.Engine) -> None:
    with sqlite_engine.connect() as connection:
        upgrade(connection, None)
        assert _differences(connection, None) == []


def test_a_migrated_postgres_schema_is_as_the_tables_are_described(postgres_engine: sa.Engine) -> None:
    with postgres_engine.connect() as connection:
        upgrade(connection, SCHEMA)
        assert _differences(connection, SCHEMA) == []


def test_a_column_that_no_migration_makes_is_told(sqlite_engine: sa.Engine) -> None:
    with sqlite_engine.begin() as connection:
        upgrade(connection, None)
        connection.exec_driver_sql("alter table workers drop column host")
        assert _differences(connection, None) != []


def test_the_newest_revision_is_the_version_that_this_release_wants(sqlite_engine: sa.Engine) -> None:
    with sqlite_engine.connect() as connection:
        assert current(connection, None) is None
        connection.rollback()
        upgrade(connection, None)
        assert current(connection, None) == SCHEMA_VERSION


def test_an_upgrade_commits_by_itself_and_a_second_one_changes_nothing(sqlite_engine: sa.Engine) -> None:
    state = sa.text("select store_id from store_state")
    with sqlite_engine.connect() as connection:
        upgrade(connection, None)
    with sqlite_engine.connect() as connection:
        first = connection.scalar(state)
    with sqlite_engine.connect() as connection:
        upgrade(connection, None)
        assert connection.scalar(state) == first


def test_an_upgrade_inside_a_transaction_is_taken_back_with_it(postgres_engine: sa.Engine) -> None:
    with postgres_engine.connect() as connection:
        with connection.begin() as transaction:
            upgrade(connection, SCHEMA)
            transaction.rollback()
        assert not sa.inspect(connection).has_schema(SCHEMA)


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def test_upgrades_at_the_same_time_make_one_schema(kind: str, request: pytest.FixtureRequest) -> None:
    engine: sa.Engine = request.getfixturevalue(f"{kind}_engine")
    schema = None if kind == "sqlite" else SCHEMA

    def migrate() -> str | None:
        with engine.connect() as connection:
            upgrade(connection, schema)
            return current(connection, schema)

    calls: list[Callable[[], str | None]] = [migrate] * 4
    assert race(calls) == [SCHEMA_VERSION] * 4
    with engine.connect() as connection:
        stores = sa.table("store_state", schema=schema)
        assert connection.scalar(sa.select(sa.func.count()).select_from(stores)) == 1


NEWER = f"at schema version 9999, this release needs {SCHEMA_VERSION}; the schema is newer than this release; upgrade"
OLDER = f"at schema version 0000, this release needs {SCHEMA_VERSION}; run: spanloom migrate --store"


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def test_a_schema_of_a_newer_release_is_refused_by_all_commands_with_one_sentence(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = request.getfixturevalue("postgres_url") if kind == "postgres" else f"sqlite:///{tmp_path}/newer.db"
    _set_version(url, "9999")
    for command in ("migrate", "stats", "list", "workflows", "dead-letters"):
        assert run([command, "--store", url]) == 2
        said = capsys.readouterr().err
        assert NEWER in said
        assert len(said.splitlines()) == 1
    store = open_store(url)
    for use in (store.open, store.migrate, store.health):
        with pytest.raises(StoreNotMigrated, match="upgrade spanloom"):
            use()
    store.close()


def test_an_older_schema_is_to_be_migrated(postgres_url: str) -> None:
    _set_version(postgres_url, "0000")
    store = open_store(postgres_url)
    with pytest.raises(StoreNotMigrated, match=OLDER):
        store.open()
    store.close()


def test_the_schema_of_another_application_is_named_and_left_alone(postgres_url: str) -> None:
    _set_version(postgres_url, "ae1027a6acf")
    store = open_store(postgres_url)
    for use in (store.open, store.migrate):
        with pytest.raises(ConfigurationError, match=r"'ae1027a6acf', which is another application's; .*namespace"):
            use()
    store.close()


def _set_version(url: str, version: str) -> None:
    store = open_store(url)
    store.migrate()
    with store._writing() as connection:  # type: ignore[attr-defined]  # of all SQL stores
        schema = "spanloom." if url.startswith("postgresql") else ""
        connection.exec_driver_sql(f"update {schema}alembic_version set version_num = '{version}'")
    store.close()


def test_a_user_without_the_right_to_make_schemas_migrates_one_that_was_made_for_it(postgres_engine: sa.Engine) -> None:
    with postgres_engine.begin() as connection:
        connection.exec_driver_sql("create role modest")
        connection.exec_driver_sql(f"create schema {SCHEMA} authorization modest")
        connection.exec_driver_sql("set local role modest")
        upgrade(connection, SCHEMA)
        assert current(connection, SCHEMA) == SCHEMA_VERSION
        connection.exec_driver_sql("reset role")
        connection.exec_driver_sql("drop owned by modest")
        connection.exec_driver_sql("drop role modest")
