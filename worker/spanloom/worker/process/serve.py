"""A worker as a process of its own: signals, logging, telemetry, health, pulse, exit code."""

from __future__ import annotations

import atexit
import faulthandler
import mmap
import os
import signal
import struct
import sys
import threading
import time
from contextlib import ExitStack, suppress
from logging import getLevelNamesMapping
from typing import NoReturn

import structlog

from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import ConfigurationError, WorkerStalled
from spanloom.worker.options import WorkerOptions
from spanloom.worker.process import signals
from spanloom.worker.process.descriptors import descriptor_failure, watch_descriptor
from spanloom.worker.process.endpoints import Endpoints, Listen
from spanloom.worker.process.health import Health
from spanloom.worker.process.log_setup import configure_logging
from spanloom.worker.process.otel_sdk import configure_sdk
from spanloom.worker.process.resource_limits import limit_failure, watch_limits
from spanloom.worker.process.supervisor import (
    DUMP_SIGNAL,
    GAVE_UP,
    PARENT_PIPE,
    PULSE,
    PULSE_BYTES,
    READY_AT,
    RETIRES_AT,
)
from spanloom.worker.service import Phase
from spanloom.worker.worker import Worker

__all__ = ["serve"]

_log = structlog.get_logger("spanloom.worker")
_CLEAN_UP_SECONDS = 8.0  #: how long the end of services, lifespan and telemetry may take after the grace


def serve(
    engine: WorkflowEngine,
    options: WorkerOptions | None = None,
    *,
    listen: Listen | None = None,
    app: str | None = None,
) -> int:
    """Run one worker in this process until SIGTERM, SIGINT or, in burst mode, until nothing is left. Returns 0.

    After the signal nothing new is claimed, running nodes have their grace, and the other claims are given back. A
    second signal ends the grace. SIGHUP is like a first SIGTERM. If a handler, or a thread that it has started, does
    not end within the grace, the process exits here, or when the interpreter waits for it, with 0. If a part of the
    worker stands still, the process exits with 75, to be replaced; so it does, after a drain, once `max_nodes` or
    `max_memory` is reached. Call it in the main thread. With `listen`, metrics and health are served at that address
    until the worker has drained. `app` is the engine's name, as `module:name`.

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
    page = _PulsePage()

    def ready() -> None:
        signals.reinstall_signal_handlers()  # the lifespan may have run a loop of its own in this thread
        watch_limits()
        page.begin()

    def recycle() -> None:
        if not page.request_replacement():
            exit_in_time.recycle()

    worker = Worker(
        engine,
        options,
        ready=ready,
        beat=page.count,
        given_up=lambda: _leave(GAVE_UP),
        failure=_process_failure,
        recycle=recycle,
        app=app,
    )
    exit_in_time = _TimelyExit(worker, options.grace_seconds)
    with ExitStack() as after:
        endpoints = None if listen is None else Endpoints(listen, Health(worker))
        if endpoints is not None:
            after.callback(endpoints.stop)
        after.callback(configure_sdk("spanloom-worker", instance_id=worker.name, prometheus=endpoints is not None))
        signals.install_signal_handlers(exit_in_time.signalled, exit_in_time.hang_up)
        _stop_with_parent(exit_in_time)
        exit_in_time.start()
        if endpoints is not None:
            endpoints.start()
        try:
            ended = worker.run()
        except WorkerStalled:
            _leave(GAVE_UP)
        except Exception as error:
            if (failure := _process_failure()) is None:
                raise
            _log.error("worker_gives_up", worker=worker.name, reason=failure, error=f"{type(error).__name__}: {error}")
            _leave(GAVE_UP)
        finally:
            page.end()
    engine.close()
    if not ended:  # a handler that does not end must not keep the process; its node run was given back
        _leave(exit_in_time.code)
    exit_in_time.worker_has_ended()
    return exit_in_time.code


def _process_failure() -> str | None:
    """Return why nothing in this process can be trusted any more; None if it can."""
    return descriptor_failure() or limit_failure()


class _PulsePage:
    """The memory that this process shares with its supervisor, if it has one. It counts without a descriptor."""

    def __init__(self) -> None:
        self._page: mmap.mmap | None = None
        self._count = 0
        if (number := os.environ.pop(PULSE, None)) is not None:
            self._page = mmap.mmap(int(number), PULSE_BYTES)
            os.set_inheritable(int(number), False)
            os.lseek(int(number), PULSE_BYTES, os.SEEK_SET)
            if signal.getsignal(DUMP_SIGNAL) is signal.SIG_DFL:
                faulthandler.register(DUMP_SIGNAL, file=int(number), all_threads=True)

    def begin(self) -> None:
        """Have the supervisor watch from now on."""
        self.count()
        self._write(READY_AT, b"\x01")

    def count(self) -> None:
        """Count once more: this process moves."""
        self._count += 1
        self._write(0, struct.pack("=Q", self._count))

    def request_replacement(self) -> bool:
        """Have the supervisor replace this process, when it is its turn; False if there is no supervisor."""
        self._write(RETIRES_AT, b"\x01")
        return self._page is not None

    def end(self) -> None:
        """Have the supervisor watch no longer: the rest has a time limit here."""
        self._write(READY_AT, b"\x00")

    def _write(self, at: int, data: bytes) -> None:
        if self._page is not None:
            self._page[at : at + len(data)] = data


class _TimelyExit:
    """The bound on the time that a process takes to end, whatever a lifespan or a handler's threads wait for."""

    def __init__(self, worker: Worker, grace_seconds: float) -> None:
        self._worker = worker
        self._grace_seconds = grace_seconds
        self._clock = time.monotonic
        self._hurry = threading.Event()  # a signal has come after the grace had ended
        self._ended = threading.Event()
        self.supervised = False  #: a supervisor passes requests on
        self.code = 0  #: the exit code

    def start(self) -> None:
        """Count from the time on at which the worker is to stop."""
        threading.Thread(target=self._run, name="spanloom-exit", daemon=True).start()

    def stop(self) -> None:
        """Stop the worker; end its grace if it stops already, and the process if the grace has ended."""
        self.code = 0
        if self._worker.state.aborting:
            self._hurry.set()
        self._worker.stop()

    def signalled(self) -> None:
        """Stop the worker for a signal to this process.

        With a supervisor only its requests end the grace: systemd sends one SIGTERM to each process of a service.
        """
        if self.supervised:
            self.hang_up()
        else:
            self.stop()

    def hang_up(self) -> None:
        """Stop the worker, unless it stops already."""
        self.code = 0
        self._worker.state.advance(Phase.DRAINING)

    def recycle(self) -> None:
        """Stop the worker, unless it stops already, and exit with the code of a process that is to be replaced."""
        if self._worker.state.advance(Phase.DRAINING):
            self.code = GAVE_UP

    def worker_has_ended(self) -> None:
        """Give the rest of the grace to the threads that handlers have started."""
        atexit.register(signals.ignore_signals)  # a late signal must not change the exit code
        threads = [
            thread.name
            for thread in threading.enumerate()
            if not thread.daemon and thread is not threading.current_thread()
        ]
        if threads:
            _log.warning("threads_go_on", worker=self._worker.name, threads=threads[:10])
        self._ended.set()

    def _run(self) -> None:
        state = self._worker.state
        state.wait_for(Phase.DRAINING)
        until = self._clock() + self._grace_seconds
        state.wait_for(Phase.ABORTING)
        second = self._hurry
        clean_until = max(until, self._clock() + _CLEAN_UP_SECONDS)
        while not second.is_set() and self._clock() < (until if self._ended.is_set() else clean_until):
            second.wait(0.05)
        if not self._ended.is_set():
            _log.warning("exit_without_clean_up", worker=self._worker.name)
        _leave(self.code)


def _leave(code: int) -> NoReturn:
    """End the process now, without waiting for any thread."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)


def _stop_with_parent(exit_in_time: _TimelyExit) -> None:
    """Take the supervisor's requests: they need no signal. Its end is one as well."""
    pipe = os.environ.pop(PARENT_PIPE, None)
    if pipe is None:
        return
    os.set_inheritable(int(pipe), False)
    watch_descriptor("the pipe of its supervisor", int(pipe))
    exit_in_time.supervised = True

    def watch() -> None:
        with suppress(OSError):
            if os.read(int(pipe), 1):
                exit_in_time.hang_up()  # it may stop already, for a signal of its own
                while os.read(int(pipe), 1):
                    exit_in_time.stop()
        exit_in_time.supervised = False
        exit_in_time.hang_up()

    threading.Thread(target=watch, name="spanloom-parent", daemon=True).start()
