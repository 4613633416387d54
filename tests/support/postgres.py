"""Databases copied from a migrated one, in which states.py is enforced, and the wait until a connection is blocked."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spanloom.engine.store.states import EXECUTION_TRANSITIONS, NODE_TRANSITIONS
from spanloom.testing.servers import PostgresServer

_PASSES = 2000
_WAITING = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
_AT_WORK = (
    "select coalesce(state, '?') || ': ' || query from pg_stat_activity"
    " where datname = %s and backend_type = 'client backend' and state is distinct from 'idle'"
)
_numbers = itertools.count(1)
_watchers: dict[PostgresServer, Any] = {}
_lock = threading.Lock()


def at_work(server: PostgresServer, database: str) -> list[str]:
    """Return what the connections to this database do that are not idle."""
    found = _watching(server).execute(_AT_WORK, [database])
    return [str(query) for (query,) in found.fetchall()]


def _watching(server: PostgresServer) -> Any:
    """Return a connection that stays from one test to the next: to connect costs more than what it does."""
    import psycopg

    with _lock:
        if server in _watchers:
            try:
                _watchers[server].execute("select 1")
            except psycopg.OperationalError:  # a test ended it, or the server
                stop_watching(server)
            else:
                return _watchers[server]
        _watchers[server] = psycopg.connect(server.url, autocommit=True)
        return _watchers[server]


def stop_watching(server: PostgresServer) -> None:
    """Close the connection to this server that stayed."""
    if server in _watchers:
        _watchers.pop(server).close()


@contextmanager
def copied_database(server: PostgresServer, template: str) -> Iterator[str]:
    """Copy a database, yield the copy's name, and drop it after the block. Starts the server if it is down.

    A copy takes a fraction of a migration.
    """
    name = f"copy_{next(_numbers)}"
    server.start()
    _watching(server).execute(f"create database {name} template {template}")
    try:
        yield name
    finally:
        server.start()
        _watching(server).execute(f"drop database {name} with (force)")


def until_blocked(url: str, number: int = 1) -> None:
    """Return once so many connections to this database wait for a lock. Raises AssertionError after ten seconds."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as watcher:
        for _ in range(_PASSES):
            row = watcher.execute(_WAITING).fetchone()
            if row is not None and row[0] >= number:
                return
            watcher.execute("select pg_sleep(0.005)")
    raise AssertionError(f"fewer than {number} connections wait for a lock")


def watch_transitions(url: str) -> None:
    """Let the database refuse every change of a status that states.py does not have, in the schema of this store.

    Functions in PL/pgSQL do not read that table; with this every test that runs them holds them to it. A run's end is
    seen as well, where its row leaves for node_results in the same transaction.
    """
    import psycopg

    pairs = [("executions", old, new) for old, some in EXECUTION_TRANSITIONS.items() for new in some]
    pairs += [("node_runs", old, new) for old, some in NODE_TRANSITIONS.items() for new in some]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_WATCH)
        with connection.cursor() as cursor:
            cursor.executemany("insert into spanloom.legal_transitions values (%s, %s, %s)", pairs)


_WATCH = """
create table spanloom.legal_transitions (of text, old text, new text, primary key (of, old, new));

create unlogged table spanloom.left_runs (
    execution_id uuid, node_id text collate "C", item integer, status text, xact xid8,
    primary key (execution_id, node_id, item)
);

create function spanloom.check_transition(p_of text, p_row text, p_old text, p_new text) returns void
language plpgsql
as $$
begin
    if p_old <> p_new and not exists (
        select from spanloom.legal_transitions t where t.of = p_of and t.old = p_old and t.new = p_new
    ) then
        raise exception 'states.py has no transition from % to % for %: %', p_old, p_new, p_of, p_row;
    end if;
end
$$;

create function spanloom.check_update() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if TG_TABLE_NAME = 'node_runs' and new.status = 'running' and to_json(new) ->> 'worker_id' is null then
        return new;  -- an operator's: nobody runs it, it ends in this transaction
    end if;
    perform spanloom.check_transition(TG_TABLE_NAME, to_json(new)::text, old.status, new.status);
    return new;
end
$$;

create function spanloom.note_left_run() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into spanloom.left_runs as l
    values (old.execution_id, old.node_id, old.item, old.status, pg_current_xact_id())
    on conflict (execution_id, node_id, item) do update set status = excluded.status, xact = excluded.xact;
    return old;
end
$$;

create function spanloom.check_end() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_old text;
begin
    delete from spanloom.left_runs l
    where l.execution_id = new.execution_id and l.node_id = new.node_id and l.item = new.item
        and l.xact = pg_current_xact_id()
    returning l.status into v_old;
    perform spanloom.check_transition('node_runs', to_json(new)::text, v_old, new.status);
    return new;
end
$$;

create trigger check_update before update of status on spanloom.executions
for each row when (old.status <> new.status) execute function spanloom.check_update();

create trigger check_update before update of status on spanloom.node_runs
for each row when (old.status <> new.status) execute function spanloom.check_update();

create trigger note_left_run before delete on spanloom.node_runs
for each row when (old.node_id not like '$%') execute function spanloom.note_left_run();

create trigger check_end before insert on spanloom.node_results
for each row execute function spanloom.check_end();
"""
