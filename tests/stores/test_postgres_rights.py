"""The rights of a Postgres role: with those that the documentation lists, and no others, all of the port works."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from spanloom.engine.errors import ConfigurationError, StoreUnavailable
from spanloom.engine.store.port import (
    ExecutionReads,
    ExecutionStore,
    Recovery,
    Retention,
    Telemetry,
    WorkerLeases,
    WorkflowVersions,
)
from spanloom.engine.store.transitions import Control, NodeTransitions
from spanloom.stores import InMemoryExecutionStore, PostgresExecutionStore
from stores.whole_port import use_whole_port

_DOCUMENT = Path(__file__).parents[2] / "docs" / "deployment.md"


def _documented() -> str:
    """Return the statements of the documentation that give a role its rights."""
    (statements,) = re.findall(r"```sql\n(grant usage on schema spanloom to app;.*?)```", _DOCUMENT.read_text(), re.S)
    return str(statements)


@pytest.fixture
def app_url(postgres_url: str) -> Iterator[str]:
    """The URL of a role with the documented rights; what everyone may do by default is taken away before."""
    parts = urlsplit(postgres_url)
    name = parts.path[1:]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for revoked in (
            f"all on database {name}",
            "all on schema public",
            "execute on all functions in schema spanloom",
        ):
            connection.execute(f"revoke {revoked} from public")
        connection.execute("create role app login")
        connection.execute(f"grant connect on database {name} to app")
        connection.execute(_documented())
    yield postgres_url.replace("spanloom@", "app@", 1)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("drop owned by app")
        connection.execute("drop role app")


@pytest.mark.services
@pytest.mark.parametrize("accelerated", [True, False])
def test_a_role_with_just_the_documented_rights_can_do_all_that_the_port_has(app_url: str, accelerated: bool) -> None:
    store = PostgresExecutionStore(app_url, accelerated=accelerated)
    store.open()
    use_whole_port(store)
    store.migrate()  # there is nothing to do
    store.close()


@pytest.mark.services
def test_each_documented_right_is_needed(app_url: str, postgres_url: str) -> None:
    statements = [line for line in _documented().splitlines() if line.startswith("grant")]
    assert len(statements) == 3
    for statement in statements:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(statement.replace("grant", "revoke").replace(" to app", " from app"))
        store = PostgresExecutionStore(app_url)
        with pytest.raises((ConfigurationError, StoreUnavailable), match="permission denied"):  # at open, or later
            use_whole_port(store)
        store.close()
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(_documented())


@pytest.mark.services
def test_such_a_role_creates_nothing_and_changes_no_version(app_url: str) -> None:
    with psycopg.connect(app_url, autocommit=True) as connection:
        for statement in (
            "create table spanloom.mine ()", "create schema mine",
            "update spanloom.alembic_version set version_num = '1'", "alter function spanloom.claim_v1 reset all",
        ):  # fmt: skip
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_the_play_calls_every_method_of_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = (WorkflowVersions, NodeTransitions, Control, ExecutionReads, Telemetry, WorkerLeases, Recovery, Retention)
    methods = {name for part in parts for name in vars(part) if not name.startswith("_")}
    called: set[str] = set()

    class Noting(InMemoryExecutionStore):
        def __getattribute__(self, name: str) -> object:
            called.add(name)
            return super().__getattribute__(name)

    store: ExecutionStore = Noting()
    use_whole_port(store)
    assert len(methods) > 40
    assert methods - called == set()
