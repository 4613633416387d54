"""Opening stores by URL, and what the package loads before one is used."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import spanloom.stores
from spanloom.engine.errors import ConfigurationError
from spanloom.engine.store import opening
from spanloom.stores import InMemoryExecutionStore, SqliteExecutionStore, open_store


def test_memory_is_opened_by_its_url() -> None:
    assert isinstance(open_store("memory://"), InMemoryExecutionStore)


def test_a_sqlite_file_is_opened_by_its_url(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/store.db")
    assert isinstance(store, SqliteExecutionStore)
    assert store.url == f"sqlite:///{tmp_path}/store.db"


def test_an_unknown_scheme_is_told_which_there_are() -> None:
    with pytest.raises(
        ConfigurationError, match=r"'mysql://'; there are: memory://, postgres://, postgresql://, sqlite://"
    ):
        open_store("mysql://host/database")


@pytest.mark.parametrize("url", ["", "store.db", "/var/lib/store.db", "sqlite:store.db", "://"])
def test_a_url_without_a_scheme_is_told_how_one_looks(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"has no scheme; write memory://"):
        open_store(url)


def test_a_malformed_url_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigurationError, match="malformed") as refused:
        open_store("postgresql://me:secret@[host/database")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("scheme", "says"), [("postgresql", r"spanloom\[postgres\]"), ("other", "install it with pip")]
)
def test_a_missing_driver_is_told_how_to_install_it(monkeypatch: pytest.MonkeyPatch, scheme: str, says: str) -> None:
    point = EntryPoint(name=scheme, value="no_such_driver:Store", group="spanloom.stores")
    monkeypatch.setattr(opening, "plugins", lambda group: {scheme: point})
    with pytest.raises(ConfigurationError, match=f"'no_such_driver'.*{says}"):
        open_store(f"{scheme}://host")


def test_importing_the_package_loads_no_database() -> None:
    look = "import spanloom.stores, sys; print([m for m in ('sqlalchemy', 'psycopg', 'sqlite3') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    assert {"InMemoryExecutionStore", "PostgresExecutionStore", "SqliteExecutionStore", "open_store"} == set(
        spanloom.stores.__all__
    )
    assert spanloom.stores.SqliteExecutionStore is SqliteExecutionStore
    with pytest.raises(AttributeError, match="no attribute 'OracleExecutionStore'"):
        spanloom.stores.OracleExecutionStore  # type: ignore[attr-defined]
