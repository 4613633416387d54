"""The faults of a Postgres that answers and refuses: everything for a while, or what belongs to one execution."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from chaos.environment import Environment
from chaos.fault import Fault

__all__ = ["OneOutOfMemory", "RefuseWrites"]

_AGAIN_SECONDS = 0.05
_RELOAD = "select pg_reload_conf()"
_WRITABLE = "-c default_transaction_read_only=off"

Change = tuple[tuple[str, ...], tuple[str, ...]]  #: what makes the database refuse, and what ends that


def _raising(state: str, table: str, when: str = "true", name: str = "refuse_all") -> Change:
    return (
        (
            f"create or replace function spanloom.{name}() returns trigger language plpgsql as "
            f"$$ begin raise exception 'refused on purpose' using errcode = '{state}'; end $$",
            f"create trigger {name} before insert on spanloom.{table} for each row when ({when}) "
            f"execute function spanloom.{name}()",
        ),
        # Not "if exists": another fault may have the schema moved for the moment.
        (f"drop trigger {name} on spanloom.{table}",),
    )


#: By turns: a full disk, one that can't be read, no rights to a file, a limit of time, missing functions, and locks.
_REFUSALS: tuple[Change, ...] = (
    _raising("53100", "node_results"),
    (
        ("alter system set default_transaction_read_only = on", _RELOAD),
        ("alter system reset default_transaction_read_only", _RELOAD),
    ),
    _raising("58030", "events"),
    (("alter schema spanloom rename to moved",), ("alter schema moved rename to spanloom",)),
    _raising("42501", "node_results"),
    _raising("57014", "events"),
)


class RefuseWrites(Fault):
    """Have Postgres refuse writes for up to six seconds, each time for another reason."""

    name = "refuse-writes"
    every = (1.0, 3.0)
    needs_postgres = True
    lasts = (0.2, 6.0)

    def __init__(self, *, pace: float = 1.0, lasts: tuple[float, float] | None = None) -> None:
        super().__init__(pace=pace)
        self.lasts = lasts or self.lasts
        self._times = 0

    def inject(self, environment: Environment, chance: random.Random) -> None:
        at = time.time()
        change = _REFUSALS[self._times % len(_REFUSALS)]
        self._times += 1
        with _changed(environment, change) as done:
            if done:
                environment.over.wait(chance.uniform(*self.lasts))
        if done:
            environment.record(self.name, at)

    def explains(self, environment: Environment) -> int:
        return environment.claims * environment.workers.count  # the leases of all may lapse meanwhile


class OneOutOfMemory(Fault):
    """Have Postgres run out of memory for up to four seconds, over each thing that it does for one execution."""

    name = "one-out-of-memory"
    every = (0.1, 0.3)
    needs_postgres = True
    lasts = (0.2, 4.0)

    def inject(self, environment: Environment, chance: random.Random) -> None:
        execution_id = environment.recent_execution(chance)
        if execution_id is None:
            return
        at = time.time()
        with _changed(
            environment, _raising("53200", "events", f"new.execution_id = '{execution_id}'", "refuse_one")
        ) as done:
            if done:
                environment.over.wait(chance.uniform(*self.lasts))
        if done:
            environment.record(self.name, at)


@contextmanager
def _changed(environment: Environment, change: Change) -> Generator[bool]:
    """Make a change while the block lasts, and undo it once the server is there; yield whether it was made."""
    make, undo = change
    try:
        _execute(environment, make)
    except psycopg.Error:
        yield False  # another fault has it down
        return
    try:
        yield True
    finally:
        _until_done(lambda: _execute(environment, undo))


def _execute(environment: Environment, statements: Sequence[str]) -> None:
    # Not longer than a moment: who waits for a lock on a table holds up all who come later.
    options = f"{_WRITABLE} -c lock_timeout=2s"
    with psycopg.connect(environment.engine.store.url, autocommit=True, options=options) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[call-overload]  # these texts are the module's own


def _until_done(step: Callable[[], Any]) -> None:
    while True:
        with contextlib.suppress(psycopg.Error):
            step()
            return
        time.sleep(_AGAIN_SECONDS)
