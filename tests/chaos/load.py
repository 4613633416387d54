"""One engine process that starts its share of the executions.

    python -m chaos.load FOLDER COUNT SHARE SHARES RATE WINDOW

It may be killed at any instruction and run again: it goes on with the first number that was not acknowledged, under the
same idempotency key, so that the number of executions stays exact.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

from chaos.app import engine
from chaos.trace_log import append
from chaos.workflows import workflow_of
from spanloom.engine import StoreNotMigrated, StoreUnavailable

__all__ = ["acknowledged", "generate"]

_LOOK_SECONDS = 0.2
_PAUSE_SECONDS = 0.1
_BURST = 10
_AWAY = (StoreUnavailable, StoreNotMigrated)  # who starts while the schema is moved finds none


def acknowledged(folder: Path) -> list[tuple[int, str]]:
    """Return the numbers that were started, with the ids that were returned for them."""
    return [
        (number, execution_id)
        for path in sorted(folder.glob("started-*"))
        for number, execution_id in map(json.loads, path.read_bytes().splitlines())
    ]


def generate(folder: Path, count: int, share: int, shares: int, rate: float, window: int) -> None:
    """Start what is left of this share while fewer than `window` executions are open: `rate` a second, in bursts.

    So jobs wait in Redis now and then, for faults to hit.
    """
    path = folder / f"started-{share}"
    done = {number for number, _ in acknowledged(folder)}
    looked, ready = 0.0, False
    for number in range(share, count, shares):
        if number in done:
            continue
        if time.monotonic() - looked > _LOOK_SECONDS:
            while _open_executions() >= window:
                time.sleep(_PAUSE_SECONDS)
            looked = time.monotonic()
        append(path, number, _start(number))
        if not ready:
            ready = True
            print(json.dumps({"event": "engine_ready"}), flush=True)
        if number // shares % _BURST == _BURST - 1:
            time.sleep(_BURST / rate)


def _start(number: int) -> str:
    for tries in itertools.count():
        try:
            return engine.enqueue_workflow(
                workflow_of(number).id, number, idempotency_key=f"number {number}", metadata={"number": str(number)}
            )
        except _AWAY:
            time.sleep(_PAUSE_SECONDS * min(tries + 1, 5))
    raise AssertionError("unreachable")


def _open_executions() -> int:
    try:
        counts = engine.store.stats().executions
    except _AWAY:
        return sys.maxsize
    return sum(number for status, number in counts.items() if not status.ended)


def main() -> None:
    """Feed as the command line says."""
    folder, count, share, shares, rate, window = sys.argv[1:]
    generate(Path(folder), int(count), int(share), int(shares), float(rate), int(window))


if __name__ == "__main__":
    main()
