"""Names in SQL: what another role creates on the search_path is never taken for Postgres' own function or operator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import spanloom.stores
from spanloom.engine.store.requests import StartResult
from spanloom.stores import PostgresExecutionStore
from spanloom.stores.migrations import PINNED
from spanloom.testing.driver import request
from stores.operations import play
from stores.whole_port import use_whole_port
from support.stores import truncate

pytestmark = pytest.mark.services

_TYPES = (
    "text", "varchar", "integer", "bigint", "uuid", "boolean", "float8", "numeric", "timestamptz", "interval", "json",
    "jsonb", "text[]", "uuid[]", "integer[]",
)  # fmt: skip
_OPERATORS = ("=", "<>", "<", ">", "<=", ">=", "||", "+", "-", "*", "/", "->", "->>", "~", "~~", "<<")
_CALLED = re.compile(r"\b([a-z_0-9]+) ?\(")


def _hostile(connection: psycopg.Connection[tuple[str, ...]]) -> Iterator[str]:
    """Yield statements that overload what our SQL calls, for each type and pairs of types."""
    folder = Path(spanloom.stores.__file__).parent
    ours = " ".join(path.read_text() for path in (*folder.rglob("*.sql"), *folder.rglob("*.py")))
    called = _CALLED.findall(ours.lower())
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
    use_whole_port(truncate(store))
    play(store)
    with psycopg.connect(among_hostile_names) as own:
        assert isinstance(store.create_execution(request("diamond"), connection=own), StartResult)
    store.close()
    fresh = PostgresExecutionStore(among_hostile_names, namespace="fresh")
    fresh.migrate()
    fresh.open()
    fresh.close()


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
