"""What `import spanloom.engine` costs, beside `import rq, pydantic`, in fresh interpreters that take turns."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

__all__ = ["LIMIT_MS", "main"]

LIMIT_MS = 150  #: how much more than `import rq, pydantic` it may cost
_OURS = "import spanloom.engine"
_THEIRS = "import rq, pydantic"
_STATEMENTS = ("pass", _THEIRS, _OURS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the medians and return 1 if ours is over the limit."""
    parser = argparse.ArgumentParser(prog="bench/imports.py", description="Time imports in fresh interpreters.")
    parser.add_argument("--rounds", type=int, default=15, help="how often each has its turn (default: %(default)s)")
    rounds = parser.parse_args(arguments).rounds
    for statement in _STATEMENTS:
        _seconds(statement)  # fills the byte code and disk caches
    taken: dict[str, list[float]] = {statement: [] for statement in _STATEMENTS}
    for _ in range(rounds):
        for statement in _STATEMENTS:
            taken[statement].append(_seconds(statement))
    medians = {statement: statistics.median(times) * 1000 for statement, times in taken.items()}
    print("| statement | ms, median | ms over a bare interpreter |\n|---|---|---|")
    for statement, milliseconds in medians.items():
        print(f"| `{statement}` | {milliseconds:.0f} | {milliseconds - medians['pass']:.0f} |")
    more = medians[_OURS] - medians[_THEIRS]
    print(f"\n`{_OURS}` costs {more:+.0f} ms against `{_THEIRS}`; the limit is {LIMIT_MS:+d} ms.")
    return 0 if more <= LIMIT_MS else 1


def _seconds(statement: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
