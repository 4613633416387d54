"""`make chaos`: real workers and engines under every fault, one kind at a time and then all together. Takes minutes.

Starts its own Redis and Postgres. Exits with 1, and says where, if the bar is missed.
"""

from __future__ import annotations

import argparse
import logging
import random
import signal
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import structlog

from chaos.faults import FAULTS, Fault
from chaos.report import as_text
from chaos.scenario import Load, run_scenario
from chaos.verify import ScenarioResult
from spanloom.stores import open_store
from spanloom.testing.servers import PostgresServer, postgres_server, redis_server

TOGETHER = "together"
_TOGETHER_PACE = 3.0  #: or the workers and engines would do little else than start
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the scenarios, print the report and return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    kinds = [kind for kind in FAULTS if options.store == "postgres" or not kind.needs_postgres]
    known = [*(kind.name for kind in kinds), TOGETHER]
    wanted = [name.strip() for name in options.only.split(",") if name.strip()] or known
    if unknown := set(wanted) - set(known):
        parser.error(f"--only knows no {', '.join(sorted(unknown))}; it knows {', '.join(known)}")
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR)
    )  # servers are away on purpose
    results: list[ScenarioResult] = []
    try:
        with ExitStack() as stack:
            postgres = stack.enter_context(postgres_server()) if options.store == "postgres" else None
            for name in wanted:
                pace = _TOGETHER_PACE if name == TOGETHER else 1.0
                faults = [
                    kind(pace=pace) for kind in kinds if name == kind.name or (name == TOGETHER and kind.together)
                ]
                print(f"{name}: {options.executions:,} executions, seed {options.seed} …", file=sys.stderr, flush=True)
                results.append(_run(name, faults, Load(options.executions), postgres, options.seed))
    except KeyboardInterrupt:
        print("stopped, and cleaned up", file=sys.stderr)
        return 130
    print(as_text(results))
    return 1 if any(result.misses() for result in results) else 0


def _run(name: str, faults: Sequence[Fault], load: Load, postgres: PostgresServer | None, seed: int) -> ScenarioResult:
    with (
        tempfile.TemporaryDirectory(prefix="spanloom-chaos-") as folder,
        redis_server() as redis,
        _store_url(postgres, Path(folder)) as store_url,
    ):
        store = open_store(store_url)
        store.migrate()
        store.close()
        return run_scenario(
            name, faults, load, folder=Path(folder), store_url=store_url, redis=redis, postgres=postgres, seed=seed
        )


@contextmanager
def _store_url(postgres: PostgresServer | None, folder: Path) -> Generator[str]:
    """Make an empty store for one scenario."""
    if postgres is None:
        yield f"sqlite:///{folder}/spanloom.db"
        return
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("create database chaos")
    try:
        yield postgres.database_url("chaos")
    finally:
        postgres.start()
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute("drop database chaos with (force)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaos", description="Prove that nothing is lost, whatever dies.")
    parser.add_argument("--executions", type=int, default=1000, metavar="N", help="for each scenario (default: 1000)")
    parser.add_argument(
        "--only", default="", metavar="NAME,…", help=f"some of the faults, or {TOGETHER!r} (default: all)"
    )
    parser.add_argument("--store", choices=("postgres", "sqlite"), default="postgres")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of the faults (default: drawn)")
    return parser


def _interrupt(_signal: int, _frame: object) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # one is enough: nothing may interrupt the cleaning up
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
