"""A process with many workers, for `make bench-scale`: each has an engine of its own, and so what a worker process has.

That is its own connections to Postgres and Redis, lease, heartbeat, sweep, fetch loop and slots. They share the
interpreter and its lock. `simulated.py NUMBER`, ended by SIGTERM.
"""

from __future__ import annotations

import logging
import signal
import sys
from contextlib import ExitStack

from workflows import registry

from spanloom.engine import WorkflowEngine
from spanloom.worker.process.log_setup import configure_logging

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main() -> None:
    """Run so many workers until a signal comes."""
    configure_logging("auto", logging.WARNING)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # before there are threads, which inherit it
    with ExitStack() as stack:
        workers = []
        for _ in range(int(sys.argv[1])):
            engine = stack.enter_context(WorkflowEngine(registry))
            workers += stack.enter_context(engine.start_workers(1))
        signal.sigwait(_SIGNALS)
        for worker in workers:  # all of them first, so that they drain together
            worker.stop()


if __name__ == "__main__":
    main()
