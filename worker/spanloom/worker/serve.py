"""A worker as a process of its own: signals, logging, tracing, exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from logging import getLevelNamesMapping
from types import FrameType

from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import ConfigurationError
from spanloom.worker.options import WorkerOptions
from spanloom.worker.telemetry import configure_logging, configure_tracing
from spanloom.worker.worker import Worker

__all__ = ["serve"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
PARENT_PIPE = "SPANLOOM_PARENT_PIPE"  #: the file descriptor whose end of file says that the supervisor is gone


def serve(engine: WorkflowEngine, options: WorkerOptions | None = None) -> int:
    """Run one worker in this process until SIGTERM, SIGINT or, in burst mode, until nothing is left. Returns 0.

    SIGTERM: nothing new is claimed, running nodes have their grace, the rest is given back, and the process exits with
    0; a second signal ends the grace. Call it in the main thread. Raises ConfigurationError for a store that other
    processes can't see, and what Worker.run() raises.
    """
    if not engine.store.shared:
        raise ConfigurationError(
            f"the store {engine.store.url} lives in one process; run its workers there (engine.start_workers()), "
            f"or use sqlite:///… or postgresql://…"
        )
    options = options or WorkerOptions()
    configure_logging(engine.settings.log_format, getLevelNamesMapping()[options.log_level.upper()])
    shut_down_tracing = configure_tracing()
    worker = Worker(engine, options)

    _on_signals(worker.stop)
    _stop_with_parent()
    try:
        ended = worker.run()
    finally:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # it has stopped: a late signal must not spoil the exit code
        shut_down_tracing()
    engine.close()
    if not ended:  # a handler that ignores its end must not keep the process; its node run was given back
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def _on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` for each signal, on a thread of its own: a handler may interrupt any lock, and takes none itself."""
    read_end, write_end = os.pipe()

    def on_signal(_signal: int, _frame: FrameType | None) -> None:
        os.write(write_end, b"!")

    def listen() -> None:
        while os.read(read_end, 1):
            stop()

    threading.Thread(target=listen, name="spanloom-signals", daemon=True).start()
    for number in _SIGNALS:
        signal.signal(number, on_signal)


def _stop_with_parent() -> None:
    pipe = os.environ.pop(PARENT_PIPE, None)
    if pipe is None:
        return

    def watch() -> None:
        while os.read(int(pipe), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="spanloom-parent", daemon=True).start()
