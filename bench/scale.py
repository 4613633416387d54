"""`make bench-scale`: how throughput, memory and bytes grow with processes, slots, workers, graphs and what is kept.

Postgres with fsync on; each curve has a Postgres and a Redis of its own, and a time after which it begins no other
point: half an hour for all of them. Pictures are drawn by bench/plots.py, with what `make` installs for that alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import machine, postgres_versions, redis_version
from report import write_block
from scale_bytes import measure_bytes, measure_memory
from scale_curve import Curve, Run
from scale_rates import measure_graphs, measure_kept, measure_processes
from scale_workers import measure_workers
from systems import BenchFailed, Ground

from spanloom.engine import SpanloomError
from spanloom.testing.servers import postgres_server, redis_server
from spanloom.worker.process.log_setup import configure_logging

__all__ = ["CURVES", "PLOTS", "PLOTTER", "block"]

_ROOT = Path(__file__).parents[1]
_DOCUMENT = _ROOT / "docs" / "performance.md"
PLOTTER = _ROOT / ".venv-plots"
PLOTS = _ROOT / "docs" / "plots"


@dataclass(frozen=True)
class Measurement:
    """How a curve is measured, and for how long at most it begins another point."""

    measure: Callable[[Run], Curve]
    seconds: float


CURVES: Mapping[str, Measurement] = {
    "processes": Measurement(measure_processes, 540),
    "workers": Measurement(measure_workers, 480),
    "kept": Measurement(measure_kept, 300),
    "graphs": Measurement(measure_graphs, 150),
    "memory": Measurement(measure_memory, 150),
    "bytes": Measurement(measure_bytes, 90),
}
_CONNECTIONS = 1_000  #: of Postgres: a worker has three to five
_MILLION_SECONDS = 1_500.0  #: for a million rows more, of the curve that has them


def block(name: str) -> str:
    """Return what the marks of a curve's tables are called in docs/performance.md."""
    return f"bench-scale-{name}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print Markdown, and return the exit code: 1 if a figure can't be trusted."""
    options = _parser().parse_args(arguments)
    configure_logging("auto", logging.WARNING)
    found: dict[str, Curve] = {}
    code = 0
    for name in options.only:
        try:
            found[name] = _measured(name, options)
        except (BenchFailed, SpanloomError) as error:
            print(f"{name}: the bench failed: {error}", file=sys.stderr)
            code = 1
        except KeyboardInterrupt:
            print("\nstopped, and cleaned up", file=sys.stderr)
            code = 130
            break
        else:
            print(f"## {name}\n\n{found[name].as_markdown()}\n", flush=True)
    curves = {name: asdict(curve) for name, curve in found.items()}
    if options.json:
        options.json.write_text(json.dumps(curves, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.write:
        for name, curve in found.items():
            write_block(_DOCUMENT, curve.as_markdown(), block(name))
        _draw(curves)
    return code


def _measured(name: str, options: argparse.Namespace) -> Curve:
    measurement = CURVES[name]
    seconds = measurement.seconds + _MILLION_SECONDS * (options.million and name == "kept")
    of_machine = machine()
    with (
        tempfile.TemporaryDirectory(prefix="spanloom-scale-") as directory,
        redis_server() as redis,
        postgres_server(max_connections=_CONNECTIONS) as postgres,
    ):
        run = Run(
            Ground(redis, Path(directory), postgres),
            redis,
            postgres,
            lambda text: print(f"{name}: {text}", file=sys.stderr, flush=True),
            seconds,
            quick=options.quick,
            million=options.million,
        )
        curve = measurement.measure(run)
        curve.ground = of_machine | postgres_versions(postgres) | redis_version(redis)
    return curve


def _draw(curves: Mapping[str, Any]) -> None:
    """Draw the pictures of the curves that have one, with the program that has matplotlib."""
    subprocess.run(
        ["make", "--silent", "--no-print-directory", f"{PLOTTER.name}/ready"], cwd=_ROOT, stdout=sys.stderr, check=True
    )
    subprocess.run(
        [PLOTTER / "bin" / "python", Path(__file__).with_name("plots.py"), PLOTS],
        input=json.dumps(curves).encode(),
        check=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench/scale.py", description="Measure how throughput, memory and bytes grow, over Postgres."
    )
    parser.add_argument(
        "--only", type=_names, default=list(CURVES), metavar="NAME,…", help=f"these curves: {', '.join(CURVES)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    parser.add_argument("--write", action="store_true", help="put tables and pictures into docs, too")
    parser.add_argument("--quick", action="store_true", help="few small sizes, one round: a look, no claim")
    parser.add_argument(
        "--million", action="store_true", help="keep a million executions, too: 25 minutes and 12 GB more"
    )
    return parser


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in CURVES]:
        raise argparse.ArgumentTypeError(f"knows no {', '.join(unknown)}; it knows {', '.join(CURVES)}")
    return names or list(CURVES)


if __name__ == "__main__":
    sys.exit(main())
