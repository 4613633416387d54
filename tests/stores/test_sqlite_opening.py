"""Opening a SQLite store: its file, its schema, and what is refused."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from spanloom.cli.exit_codes import run
from spanloom.engine.errors import ConfigurationError, StoreNotMigrated, StoreUnavailable
from spanloom.engine.store.requests import StartResult
from spanloom.stores import SqliteExecutionStore
from spanloom.stores.schema import SCHEMA_VERSION, metadata
from spanloom.testing.driver import request
from spanloom.testing.workflows import single

OPEN_WHEN_TOLD = """
import sys
from spanloom.stores import SqliteExecutionStore
store = SqliteExecutionStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(store.get_epoch().store_id, flush=True)
store.close()
"""

IMPORTED_BY_OPENING = """
import sys
from spanloom.stores import SqliteExecutionStore
store = SqliteExecutionStore(sys.argv[1])
store.open()
store.close()
print("alembic" in sys.modules)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def opened(path: Path) -> SqliteExecutionStore:
    store = SqliteExecutionStore(path)
    store.open()
    return store


def shape(path: Path) -> dict[str, object]:
    """Describe every table and index of a database, without the spelling of its SQL."""
    with sqlite3.connect(path) as connection:
        tables = connection.execute(
            "select name, sql from sqlite_master where type = 'table' and name like '%'"
        ).fetchall()
        found: dict[str, object] = {}
        for name, sql in tables:
            found[name] = (
                connection.execute(f"pragma table_info({name})").fetchall(),
                "WITHOUT ROWID" in sql,
                sorted(
                    (index, unique, origin, partial, connection.execute(f"pragma index_info({index})").fetchall())
                    for _, index, unique, origin, partial in connection.execute(f"pragma index_list({name})")
                ),
            )
    connection.close()
    found.pop("alembic_version", None)
    return found


def test_making_a_store_touches_no_file(tmp_path: Path) -> None:
    SqliteExecutionStore(tmp_path / "directory" / "store.db")
    assert list(tmp_path.iterdir()) == []


def test_opening_makes_the_file_its_directories_and_its_schema(tmp_path: Path) -> None:
    path = tmp_path / "new" / "directories" / "store.db"
    opened(path).close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("select version_num from alembic_version").fetchall() == [(SCHEMA_VERSION,)]
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
    connection.close()


def test_the_migrated_schema_is_the_one_that_the_code_describes(path: Path, tmp_path: Path) -> None:
    opened(path).close()
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'described.db'}")
    metadata.create_all(engine)
    engine.dispose()
    assert shape(path) == shape(tmp_path / "described.db")


def test_an_up_to_date_file_is_opened_without_alembic(path: Path) -> None:
    opened(path).close()
    ran = subprocess.run([sys.executable, "-c", IMPORTED_BY_OPENING, path], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_processes_that_open_a_new_file_at_once_share_one_store(path: Path) -> None:
    command = [sys.executable, "-c", OPEN_WHEN_TOLD, str(path)]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    store_ids = {child.communicate()[0].strip() for child in children}
    assert [child.returncode for child in children] == [0, 0, 0, 0]
    assert len(store_ids) == 1
    assert store_ids != {""}


def test_a_newer_schema_is_refused(path: Path) -> None:
    opened(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    connection.close()
    with pytest.raises(StoreNotMigrated) as refused:
        opened(path)
    assert (refused.value.found, refused.value.wanted) == ("9999", SCHEMA_VERSION)


def test_another_applications_file_is_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table customers (id)")
    connection.close()
    with pytest.raises(ConfigurationError, match="another application"):
        opened(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("select name from sqlite_master").fetchall() == [("customers",)]
    connection.close()


def test_a_file_that_is_no_database_is_refused_with_its_path(path: Path) -> None:
    path.write_text("not a database, but long enough to be taken for one" * 100)
    with pytest.raises(StoreUnavailable, match=r"store\.db.*give the store a file of its own"):
        opened(path)


def test_a_directory_is_refused_with_its_path(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StoreUnavailable, match=r"store\.db.*check that the path is a file"):
        opened(path)


def test_a_parent_that_is_a_file_is_refused(path: Path) -> None:
    path.touch()
    with pytest.raises(StoreUnavailable, match="choose another path"):
        opened(path / "store.db")


def test_a_file_that_was_removed_is_not_healthy(path: Path) -> None:
    store = opened(path)
    store.health()
    path.unlink()
    with pytest.raises(StoreUnavailable, match="removed"):
        store.health()
    store.close()


def test_a_closed_store_opens_again_at_its_next_use(path: Path) -> None:
    store = opened(path)
    store.save_workflow(single())
    answer = store.create_execution(request("single"))
    assert isinstance(answer, StartResult)
    store.close()
    store.close()
    assert store.get_execution(answer.execution_id) is not None
    store.close()


@pytest.mark.parametrize("name", ["store.db", "with space.db", "100%.db", "what?.db", "#1.db", "größe.db"])
def test_the_url_of_a_store_leads_to_the_same_file(tmp_path: Path, name: str) -> None:
    store = SqliteExecutionStore(tmp_path / name)
    again = SqliteExecutionStore.from_url(store.url)
    assert again.url == store.url
    store.open()
    assert store.get_epoch().store_id == again.get_epoch().store_id
    assert [found.name for found in tmp_path.iterdir() if not found.name.endswith(("-wal", "-shm"))] == [name]
    store.close()
    again.close()


def test_a_relative_path_stays_where_the_process_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = SqliteExecutionStore.from_url("sqlite:///relative.db")
    assert store.url == f"sqlite:///{tmp_path}/relative.db"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite://store.db", "names no file"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:///store.db?cache=shared", "only option"),
        ("sqlite:///store.db?synchronous=off", "full or normal"),
        ("sqlite:///store.db#part", "only option"),
    ],
)
def test_a_url_that_names_no_file_is_refused(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        SqliteExecutionStore.from_url(url)


@pytest.mark.parametrize(("option", "level"), [("full", 2), ("normal", 1)])
def test_synchronous_is_what_was_asked_for(path: Path, option: str, level: int) -> None:
    store = SqliteExecutionStore.from_url(f"sqlite:///{path}?synchronous={option}")
    with store._writing() as connection:
        assert connection.exec_driver_sql("pragma synchronous").scalar_one() == level
    store.close()


# ---- the file is private, and reads create none ----


def _modes(folder: Path) -> dict[str, int]:
    return {entry.name: entry.stat().st_mode & 0o777 for entry in folder.iterdir()}


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_new_file_and_what_sqlite_puts_beside_it_are_private(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        store = opened(tmp_path / "store.db")
        store.save_workflow(single())
        assert _modes(tmp_path) == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}
        store.close()
    finally:
        os.umask(before)


def test_a_file_that_was_there_keeps_its_mode(path: Path) -> None:
    path.touch()
    path.chmod(0o664)
    store = opened(path)
    store.save_workflow(single())
    assert set(_modes(path.parent).values()) == {0o664}
    store.close()


def test_a_link_leads_to_a_private_file(tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "elsewhere.db")
    opened(link).close()
    assert (tmp_path / "elsewhere.db").stat().st_mode & 0o777 == 0o600
    assert link.is_symlink()


READING = [
    ["list"], ["stats"], ["workflows"], ["workflows", "orders"], ["dead-letters"], ["show", "3f9a21c4"],
    ["logs", "3f9a21c4"], ["logs", "3f9a21c4", "--follow"], ["trace", "3f9a21c4"], ["events", "3f9a21c4"],
    ["events", "3f9a21c4", "--follow"], ["cancel", "3f9a21c4"], ["retry", "3f9a21c4"],
    ["pause", "--workflow", "orders", "--yes"], ["replay", "3f9a21c4"], ["purge", "--older-than", "1d", "--yes"],
    ["node", "skip", "3f9a21c4", "a"],
]  # fmt: skip


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_a_command_that_starts_nothing_creates_no_file_and_no_folder(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/none/store.db"
    assert run([*command, "--store", url]) == 2
    said = capsys.readouterr().err
    assert f"the store {url} does not exist, this release needs {SCHEMA_VERSION}; run: spanloom migrate" in said
    assert list(tmp_path.iterdir()) == []


def test_commands_that_write_create_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    definition = tmp_path / "single.json"
    definition.write_text(single().to_json())
    for number, command in enumerate((["migrate"], ["register", str(definition)])):
        path = tmp_path / str(number) / "store.db"
        assert run([*command, "--store", f"sqlite:///{path}"]) == 0
        assert path.stat().st_mode & 0o777 == 0o600
    assert capsys.readouterr().err == ""
