"""A worker as a process of its own: signals, logging, telemetry, health, exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import ExitStack
from logging import getLevelNamesMapping

from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import ConfigurationError
from spanloom.worker.options import WorkerOptions
from spanloom.worker.process import signals
from spanloom.worker.process.endpoints import Endpoints, Listen
from spanloom.worker.process.health import Health
from spanloom.worker.process.log_setup import configure_logging
from spanloom.worker.process.otel_sdk import configure_sdk
from spanloom.worker.worker import Worker

__all__ = ["serve"]

PARENT_PIPE = "SPANLOOM_PARENT_PIPE"  #: a file descriptor; its end of file means that the supervisor is gone


def serve(engine: WorkflowEngine, options: WorkerOptions | None = None, *, listen: Listen | None = None) -> int:
    """Run one worker in this process until SIGTERM, SIGINT or, in burst mode, until nothing is left. Returns 0.

    After the signal nothing new is claimed, running nodes have their grace, and the other claims are given back. A
    second signal ends the grace. If a handler does not end within its grace, the process exits here, with 0. Call it in
    the main thread. With `listen`, metrics and health are served at that address until the worker has drained.

    Raises ConfigurationError for a store that other processes can't open, a port that is taken or an exporter that is
    missing, and the errors of Worker.run().
    """
    if not engine.store.shared:
        raise ConfigurationError(
            f"the store {engine.store.url} lives in one process; run its workers there (engine.start_workers()), "
            f"or use sqlite:///… or postgresql://…"
        )
    options = options or WorkerOptions()
    configure_logging(engine.settings.log_format, getLevelNamesMapping()[options.log_level.upper()])
    worker = Worker(engine, options)
    with ExitStack() as after:
        endpoints = None if listen is None else Endpoints(listen, Health(worker))
        if endpoints is not None:
            after.callback(endpoints.stop)
        after.callback(configure_sdk("spanloom-worker", instance_id=worker.name, prometheus=endpoints is not None))
        signals.install_signal_handlers(worker.stop)
        _stop_with_parent()
        if endpoints is not None:
            endpoints.start()
        try:
            ended = worker.run()
        finally:
            signals.ignore_signals()  # the worker has stopped: a late signal must not change the exit code
    engine.close()
    if not ended:  # a handler that does not end must not keep the process; its node run was given back
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def _stop_with_parent() -> None:
    pipe = os.environ.pop(PARENT_PIPE, None)
    if pipe is None:
        return

    def watch() -> None:
        while os.read(int(pipe), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="spanloom-parent", daemon=True).start()
