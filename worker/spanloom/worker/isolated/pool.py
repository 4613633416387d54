"""The pool of handler processes of one worker: started at their first use, used again, and killed by a timeout."""

from __future__ import annotations

import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.trace import SpanContext

from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import ConfigurationError, HandlerDied, LeaseLost, NodeTimeout
from spanloom.engine.handlers.context import NodeContext
from spanloom.engine.handlers.handler import Handler
from spanloom.engine.workflow.definitions import Node
from spanloom.worker.isolated.messages import Call, Cancel, Ended, Failed, Line, Ready, SpanEnded, Start, Unable
from spanloom.worker.node.attempt import RunningAttempt
from spanloom.worker.node.outcomes import AttemptResult, IsolatedFailure
from spanloom.worker.options import WorkerOptions

__all__ = ["HandlerProcesses", "interpreter"]

_log = structlog.get_logger("spanloom.worker")
_START_SECONDS = 120.0  #: for its imports and its lifespan
_LOOK_SECONDS = 0.25  #: between looks whether the claim was lost
_CANCEL_SECONDS = 0.5  #: how long a handler that was cancelled may clean up
_END_SECONDS = 5.0


class _RemoteTraceback(Exception):
    """Raised when a handler has raised in its process: the traceback there, as the cause of its exception."""


class _HandlerError(Exception):
    """Raised when a handler's exception can't be pickled, in its place."""


class _HandlerProcess:
    """One process, and the connection to it."""

    def __init__(self, start: Start, spawner: ThreadPoolExecutor) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [*interpreter(), "-m", "spanloom.worker.isolated.child", str(theirs.fileno())]
            passed = (theirs.fileno(),)
            # On a thread that lives as long as the pool: Linux ends the process with the thread that has started it.
            self._process = spawner.submit(subprocess.Popen, command, pass_fds=passed).result()
        self.connection = Connection(ours.detach())
        self.calls = 0
        try:
            self.connection.send(start)
            answer = self.receive(_START_SECONDS)
        except HandlerDied:
            self.kill()
            raise
        if not isinstance(answer, Ready):
            self.kill()
            reason = answer.reason if isinstance(answer, Unable) else f"it did not start within {_START_SECONDS:g} s"
            raise ConfigurationError(f"a handler process can't run {start.target}: {reason}")

    def receive(self, seconds: float) -> Any:
        """Return the next message; None if none comes. Raises HandlerDied."""
        try:
            return self.connection.recv() if self.connection.poll(seconds) else None
        except (EOFError, OSError):
            raise HandlerDied(self._process.wait()) from None

    def send(self, message: object) -> None:
        """Send a message. Raises HandlerDied."""
        try:
            self.connection.send(message)
        except OSError:
            raise HandlerDied(self._process.wait()) from None

    def kill(self) -> None:
        """End it now, whatever it does."""
        self.connection.close()
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let it leave its lifespan and end."""
        self.connection.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()


class HandlerProcesses:
    """The handler processes of one worker, at most one for each slot.

    Each imports the engine by the name of its module and enters its lifespan, once, and is replaced after
    `tasks_per_process` calls. A call that is past its timeout, or has lost its claim, is ended with its process.
    """

    def __init__(self, engine: WorkflowEngine, options: WorkerOptions, app: str | None) -> None:
        """Take the engine's name as `module:name`; None: it is looked for in the imported modules."""
        self._options = options
        self._app = app or _name_of(engine)
        self._limit = engine.settings.payload_limit_bytes
        self._idle: list[_HandlerProcess] = []
        self._spawner = ThreadPoolExecutor(1, "spanloom-spawner")  # its thread starts with the first process
        self._lock = threading.Lock()
        self._warned = False

    def takes(self, handler: Handler) -> bool:
        """Return whether the handler runs in a process of its own."""
        if (handler.executor or self._options.executor) != "process":
            return False
        if self._app is None and not self._warned:
            self._warned = True
            hint = "name the engine at the top level of a module that another process can import"
            _log.warning("handlers_not_isolated", handler=handler.name, hint=hint)
        return self._app is not None

    def run(self, node: Node, context: NodeContext, attempt: RunningAttempt) -> AttemptResult:
        """Run a node's handler in a process.

        Raises NodeTimeout, LeaseLost if the claim was lost, HandlerDied if the process did, IsolatedFailure with the
        exception of the handler, and ConfigurationError if the process can't import the engine.
        """
        span = trace.get_current_span(attempt.own.begin()).get_span_context()
        process = self._take()
        whole = False
        try:
            process.send(_call(node, context, span, self._limit))
            attempt.entered = True
            try:
                ending = _await_end(process, node, attempt)
            except IsolatedFailure:
                whole = True
                raise
            whole = True
            return ending
        finally:
            if whole:
                self._put_back(process)
            else:
                process.kill()

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.close()
        self._spawner.shutdown(wait=False)

    def _take(self) -> _HandlerProcess:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        assert self._app is not None
        options = self._options
        start = Start(self._app, list(sys.path), options.log_level, options.capture_output)
        return _HandlerProcess(start, self._spawner)

    def _put_back(self, process: _HandlerProcess) -> None:
        process.calls += 1
        if process.calls >= self._options.tasks_per_process:
            process.close()
            return
        with self._lock:
            self._idle.append(process)


def _await_end(process: _HandlerProcess, node: Node, attempt: RunningAttempt) -> AttemptResult:
    began, until = time.monotonic(), None if node.timeout is None else time.monotonic() + node.timeout
    cancelled_at: float | None = None
    while True:
        left = _LOOK_SECONDS if until is None else min(_LOOK_SECONDS, max(0.0, until - time.monotonic()))
        message = process.receive(left)
        if isinstance(message, Line):
            attempt.log_buffer.take_line(message.line)
        elif isinstance(message, SpanEnded):
            attempt.keep_span(message.span)
        elif isinstance(message, Ended):
            if node.timeout is not None and time.monotonic() - began >= node.timeout:
                raise NodeTimeout(node.id, node.timeout)
            return message.ending
        elif isinstance(message, Failed):
            raise IsolatedFailure(message.ending, _exception(message))
        now = time.monotonic()
        if node.timeout is not None and until is not None and now >= until:
            raise NodeTimeout(node.id, node.timeout)
        if cancelled_at is None and attempt.cancelled:
            cancelled_at = now
            process.send(Cancel())
        if cancelled_at is not None and now - cancelled_at > _CANCEL_SECONDS:
            claim = attempt.claim
            raise LeaseLost(claim.header.execution_id, node.id, claim.node.fence)


def _call(node: Node, context: NodeContext, span: SpanContext, limit: int) -> Call:
    fields = {name: getattr(context, name) for name in _FIELDS}
    fields["results_json"], fields["metadata"] = dict(context.results_json), dict(context.metadata)
    trace_id, span_id = f"{span.trace_id:032x}", f"{span.span_id:016x}"
    return Call(node.model_dump_json(), fields, trace_id, span_id, span.trace_flags, limit)


_FIELDS = (
    *("execution_id", "workflow_id", "version", "node_id", "item", "attempt", "input_json", "results_json"),
    *("data_json", "depth", "metadata", "parent_execution_id"),
)


def _exception(failed: Failed) -> BaseException:
    """Return the handler's exception, or one that stands for it if it can't be unpickled."""
    error: BaseException | None = None
    if failed.error is not None:
        with suppress(Exception):
            error = pickle.loads(failed.error)  # noqa: S301  of a process that this one has started
    if not isinstance(error, BaseException):
        module, _, name = failed.type.rpartition(".")
        error = type(name, (_HandlerError,), {"__module__": module or "builtins"})(failed.message)
    with suppress(Exception):  # a class may have made the attribute its own
        error.__cause__ = _RemoteTraceback(f"\n{failed.traceback}")
    return error


def _name_of(engine: WorkflowEngine) -> str | None:
    for name, module in list(sys.modules.items()):
        if name != "__main__":
            for attribute, value in list(getattr(module, "__dict__", {}).items()):
                if value is engine:
                    return f"{name}:{attribute}"
    return None


def interpreter() -> list[str]:
    """Return this interpreter with its own options. With -P, no module of the working directory hides Python's own."""
    options: Callable[[], list[str]] = subprocess._args_from_interpreter_flags  # type: ignore[attr-defined]  # pyright: ignore  as multiprocessing does
    flags = options()
    if "-X" in flags:  # the last ones, and not all of them
        flags = flags[: flags.index("-X")]
    more = [f"-X{name}" if value is True else f"-X{name}={value}" for name, value in sys._xoptions.items()]  # pyright: ignore[reportPrivateUsage]  documented
    return [sys.executable, *(flag for flag in flags if flag != "-P"), *more, "-P"]
