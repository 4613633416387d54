"""A short cut of `make chaos`: real workers and engines under each kind of fault, and under all that SQLite can meet.

What is done to one server is done in one scenario. Every run meets each kind of fault: what SQLite meets together with
others comes by itself in `make torture`. Held to the same bar, but for how long the work may stand still: the machine
may be busy with something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from chaos.faults import (
    FAULTS,
    Fault,
    FlushRedis,
    ForbidScripts,
    KillEngines,
    KillRedis,
    KillWorkers,
    OneOutOfMemory,
    PushAgain,
    RefuseRedis,
    RefuseWrites,
    RestartPostgres,
    SpoilKeys,
    StopWorkers,
    TerminateBackends,
)
from chaos.scenario import Load, run_scenario
from spanloom.testing.servers import PostgresServer, RedisServer

LOAD = Load(executions=40, rate=20, window=30, workers=2, engines=1, lease_seconds=3.0, most_seconds=30)
#: How many executions it takes that each of these meets what it is to meet: on a busy machine few do.
EXECUTIONS = {StopWorkers: 120, KillEngines: 80, FlushRedis: 60}
SHORT_LEASE_SECONDS = 1.5  #: where each fault waits for a lapse
LONG_LEASE_SECONDS = 15.0  #: where no fault explains one: on a busy machine renewals come late
DOWN = (0.0, 1.0)
LASTS = (0.2, 1.0)


def _load(faults: Sequence[Fault]) -> Load:
    load = replace(LOAD, executions=max(EXECUTIONS.get(type(fault), LOAD.executions) for fault in faults))
    if any(isinstance(fault, StopWorkers) for fault in faults):
        return replace(load, lease_seconds=SHORT_LEASE_SECONDS)
    if all(type(fault).explains is Fault.explains for fault in faults):
        return replace(load, lease_seconds=LONG_LEASE_SECONDS)
    return load


def endure(
    name: str,
    faults: Sequence[Fault],
    folder: Path,
    store_url: str,
    redis: RedisServer,
    postgres: PostgresServer | None = None,
) -> None:
    """Run the load under the faults, and hold what became of it to the bar."""
    load = _load(faults)
    result = run_scenario(
        name, faults, load, folder=folder, store_url=store_url, redis=redis, postgres=postgres, seed=1
    )

    assert result.misses(stalls=False) == [], "\n".join(result.details)
    assert result.ended == load.executions


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([KillWorkers(pace=0.6)], marks=pytest.mark.torture),
        [StopWorkers()],
        pytest.param([FlushRedis(pace=0.3), KillRedis(pace=0.3)], marks=pytest.mark.torture),
        [RestartPostgres(pace=0.3, down=DOWN), TerminateBackends()],
        pytest.param([RefuseWrites(pace=0.3, lasts=(0.2, 1.0)), OneOutOfMemory()], marks=pytest.mark.torture),
        pytest.param(
            [RefuseRedis(pace=0.3, lasts=LASTS), ForbidScripts(pace=0.3, lasts=LASTS), SpoilKeys()],
            marks=pytest.mark.torture,
        ),
        pytest.param([KillEngines(pace=0.7), PushAgain()], marks=pytest.mark.torture),
    ],
    ids=lambda faults: " and ".join(fault.name for fault in faults),
)
def test_nothing_is_lost_under_one_kind_of_fault(
    faults: list[Fault], tmp_path: Path, postgres_url: str, postgres_server: PostgresServer, own_redis: RedisServer
) -> None:
    endure("one kind", faults, tmp_path, postgres_url, own_redis, postgres_server)


def test_nothing_is_lost_under_all_of_them_over_sqlite(tmp_path: Path, sqlite_url: str, own_redis: RedisServer) -> None:
    faults = [
        KillWorkers(pace=1.2), KillEngines(pace=1.5), FlushRedis(pace=0.4), KillRedis(pace=0.5), PushAgain(),
        RefuseRedis(pace=0.6, lasts=LASTS), ForbidScripts(pace=0.6, lasts=LASTS), SpoilKeys(),
    ]  # fmt: skip

    assert {type(fault) for fault in faults} == {kind for kind in FAULTS if kind.together and not kind.needs_postgres}
    endure("together", faults, tmp_path, sqlite_url, own_redis)
