"""The pool of handler processes of one worker: started at their first use, used again, and killed by a timeout."""

from __future__ import annotations

import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import structlog
from opentelemetry import trace
from opentelemetry.trace import SpanContext

from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.handlers.context import NodeContext
from spanloom.engine.handlers.handler import Handler
from spanloom.engine.workflow.definitions import Node
from spanloom.worker.isolated.bounds import NodeBounds
from spanloom.worker.isolated.handler_process import HandlerProcess
from spanloom.worker.isolated.messages import Call, Cancel, Ended, Failed, Line, SpanEnded, Start
from spanloom.worker.node.attempt import RunningAttempt
from spanloom.worker.node.outcomes import AttemptResult, IsolatedFailure
from spanloom.worker.options import WorkerOptions

__all__ = ["HandlerProcesses"]

_log = structlog.get_logger("spanloom.worker")
_START_SECONDS = 120.0  #: for its imports and its lifespan
_SHORT_START_SECONDS = 10.0  #: for a node with a shorter timeout; twice as long as the last start took


class _RemoteTraceback(Exception):
    """Raised when a handler has raised in its process: the traceback there, as the cause of its exception."""


class _HandlerError(Exception):
    """Raised when a handler's exception can't be pickled, in its place."""


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
        self._idle: list[HandlerProcess] = []
        self._spawner = ThreadPoolExecutor(1, "spanloom-spawner")  # its thread starts with the first process
        self._lock = threading.Lock()
        self._warned = False
        self._patience = _SHORT_START_SECONDS

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

        Raises NodeTimeout, LeaseLost if the claim was lost, HandlerDied if the process did or could not start, and
        IsolatedFailure with the exception of the handler.
        """
        span = trace.get_current_span(attempt.own.begin()).get_span_context()
        bounds = NodeBounds(node, attempt)
        process = self._take(node, bounds)
        bounds.begin()
        whole = False
        try:
            call = _call(process.calls, node, context, span, self._limit)
            process.send(call, bounds.check)
            attempt.entered = True
            try:
                ending = _await_end(process, call.number, bounds, attempt)
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

    def _take(self, node: Node, bounds: NodeBounds) -> HandlerProcess:
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                return self._started(node, bounds)
            if process.is_usable():
                return process
            process.kill()  # it has died since, or answered once more

    def _started(self, node: Node, bounds: NodeBounds) -> HandlerProcess:
        """Return a new process. A start may take as long as the node; but a short timeout must not end every start."""
        assert self._app is not None
        options, patience = self._options, self._patience
        start = Start(self._app, list(sys.path), options.log_level, options.capture_output)
        seconds = _START_SECONDS if node.timeout is None else min(_START_SECONDS, max(node.timeout, patience))
        process = HandlerProcess(start, self._spawner, self._limit)
        began = time.monotonic()
        try:
            with bounds.starting():
                process.await_ready(seconds, bounds.check)
        except BaseException:
            process.kill()
            if time.monotonic() - began >= patience:
                self._patience = min(2 * patience, _START_SECONDS)
            raise
        self._patience = max(_SHORT_START_SECONDS, 2 * (time.monotonic() - began))
        return process

    def _put_back(self, process: HandlerProcess) -> None:
        process.calls += 1
        if process.calls >= self._options.tasks_per_process:
            process.close()
            return
        with self._lock:
            self._idle.append(process)


def _await_end(process: HandlerProcess, number: int, bounds: NodeBounds, attempt: RunningAttempt) -> AttemptResult:
    cancelled = False

    def check() -> float:
        nonlocal cancelled
        seconds = bounds.check()
        if bounds.cancelled and not cancelled:
            cancelled = True
            process.send(Cancel(number), bounds.check)
        return seconds

    while True:
        message = process.receive(number, check)
        if isinstance(message, Line):
            attempt.log_buffer.take_line(message.line)
        elif isinstance(message, SpanEnded):
            attempt.keep_span(message.span)
        elif isinstance(message, Ended):
            bounds.check_timeout()
            return message.ending
        elif isinstance(message, Failed):
            raise IsolatedFailure(message.ending, _exception(message))
        check()


def _call(number: int, node: Node, context: NodeContext, span: SpanContext, limit: int) -> Call:
    fields = {name: getattr(context, name) for name in _FIELDS}
    fields["results_json"], fields["metadata"] = dict(context.results_json), dict(context.metadata)
    trace_id, span_id = f"{span.trace_id:032x}", f"{span.span_id:016x}"
    return Call(number, node.model_dump_json(), fields, trace_id, span_id, span.trace_flags, limit)


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
