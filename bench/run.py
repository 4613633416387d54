"""`make bench`: throughput and latency of Spanloom over each store and of its peers, side by side on this machine.

Starts its own Redis and Postgres. Systems take turns, round after round, each on an empty Redis and an empty store, so
that what else the machine does meets all of them; figures are medians over the rounds. Compare within one run only.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from machine import machine, postgres_versions, redis_version
from outcome import Outcome
from peer_systems import PEER_SYSTEMS
from report import as_json, as_markdown, as_ratios, as_spread, write_block
from rq_systems import RQ_SYSTEMS
from spanloom_systems import SPANLOOM_SYSTEMS
from systems import BenchFailed, Ground, System
from workloads import WORKLOADS, Workload, quick, warm_up

from spanloom.engine import SpanloomError
from spanloom.testing.servers import PostgresServer, postgres_server, redis_server
from spanloom.worker.process.log_setup import configure_logging

SYSTEMS: tuple[System, ...] = (*SPANLOOM_SYSTEMS, *PEER_SYSTEMS, *RQ_SYSTEMS)
_ROOT = Path(__file__).parents[1]
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench, print its report to stdout and return the exit code: 1 if a figure can't be trusted."""
    options = _parser().parse_args(arguments)
    systems, workloads = _chosen(options.only)
    if options.quick:
        workloads = [quick(workload) for workload in workloads]
    rounds = options.rounds or (1 if options.quick else 3)
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    configure_logging("auto", logging.WARNING)  # of the workers in this process; stdout is for the report
    try:
        outcome = _measure(systems, workloads, rounds)
    except (BenchFailed, SpanloomError) as error:
        print(f"the bench failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped, and cleaned up", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(as_json(outcome), indent=2, ensure_ascii=False))
    else:
        print(as_markdown(outcome))
        if rounds > 1:
            print(f"\n{as_spread(outcome)}")
    if options.write:
        if outcome.yardstick is None:
            print("nothing written: there are no ratios without BullMQ or RQ's SimpleWorker", file=sys.stderr)
            return 1
        write_block(_ROOT / "docs" / "performance.md", as_markdown(outcome))
        write_block(_ROOT / "README.md", as_ratios(outcome))
    return 0


def _measure(systems: Sequence[System], workloads: list[Workload], rounds: int) -> Outcome:
    outcome = Outcome(list(systems), workloads, rounds, machine())
    for system in systems:
        _progress(f"installs what is missing of {system.title}" if system.optional else "")
        with _left_out_if_optional(outcome, system):
            outcome.ground |= system.prepare()
    with ExitStack() as stack:
        postgres: PostgresServer | None = None
        if any(system.needs_postgres for system in outcome.systems):
            postgres = stack.enter_context(postgres_server())
            outcome.ground |= postgres_versions(postgres)
        for number in range(rounds):
            for system in outcome.systems[:]:
                _progress(f"round {number + 1} of {rounds}: {system.title}")
                with _left_out_if_optional(outcome, system):
                    _play(system, outcome, postgres)
    _progress("")
    if not outcome.systems:
        raise BenchFailed("none of the systems could be run")
    return outcome


def _play(system: System, outcome: Outcome, postgres: PostgresServer | None) -> None:
    """Start one system, warm it up, and measure every workload."""
    with (
        tempfile.TemporaryDirectory(prefix="spanloom-bench-") as directory,
        redis_server() as redis,
        system.playing(Ground(redis, Path(directory), postgres)) as player,
    ):
        for workload in outcome.workloads:
            player.measure(warm_up(workload))
        for workload in outcome.workloads:
            outcome.figures.setdefault((system.name, workload.name), []).append(player.measure(workload))
        outcome.ground |= redis_version(redis)


@contextmanager
def _left_out_if_optional(outcome: Outcome, system: System) -> Generator[None]:
    try:
        yield
    except (BenchFailed, OSError) as error:  # the latter if a program is not there or its pipe broke
        if not system.optional:
            raise
        _progress(f"goes on without {system.title}: {error}")
        outcome.leave_out(system, str(error).splitlines()[0].rstrip(":") + ".")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench/run.py", description="Compare Spanloom over each store with its peers, on this machine."
    )
    parser.add_argument("--quick", action="store_true", help="a quarter of the work and one round: a look, no claim")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="how often each system has its turn (default: 3)")
    parser.add_argument(
        "--only",
        default="",
        metavar="NAME,…",
        help=f"these systems ({', '.join(system.name for system in SYSTEMS)}), "
        f"these workloads ({', '.join(workload.name for workload in WORKLOADS)}), or some of both",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with the figures of every round")
    parser.add_argument(
        "--write", action="store_true", help="put the figures into docs/performance.md and README.md, too"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds; give 1 or more")
    return int(text)


def _chosen(only: str) -> tuple[list[System], list[Workload]]:
    names = {name.strip().lower() for name in only.split(",") if name.strip()}
    systems = [system for system in SYSTEMS if system.name in names]
    workloads = [workload for workload in WORKLOADS if workload.name.lower() in names]
    known = {*(system.name for system in SYSTEMS), *(workload.name.lower() for workload in WORKLOADS)}
    if unknown := names - known:
        _parser().error(f"--only knows no {', '.join(sorted(unknown))}; it knows {', '.join(sorted(known))}")
    return systems or list(SYSTEMS), workloads or list(WORKLOADS)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # one is enough: nothing may interrupt the cleaning up
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
