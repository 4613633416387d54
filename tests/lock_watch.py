"""Waits until somebody waits for a lock in Postgres, so that tests of blocking need no sleep."""

from __future__ import annotations

import psycopg

_PASSES = 2000
_WAITING = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"


def until_blocked(url: str, number: int = 1) -> None:
    """Return once so many connections to this database wait for a lock. Raises AssertionError after ten seconds."""
    with psycopg.connect(url, autocommit=True) as watcher:
        for _ in range(_PASSES):
            row = watcher.execute(_WAITING).fetchone()
            if row is not None and row[0] >= number:
                return
            watcher.execute("select pg_sleep(0.005)")
    raise AssertionError(f"fewer than {number} connections wait for a lock")
