"""A handler process: imports the engine, and runs one handler after the other for the worker that has started it."""

from __future__ import annotations

import concurrent.futures
import contextvars
import ctypes
import importlib
import logging
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, suppress
from types import SimpleNamespace
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags

from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import LeaseLost
from spanloom.engine.handlers.context import NodeContext
from spanloom.engine.handlers.handler import Handler
from spanloom.engine.store.requests import LogLine
from spanloom.engine.workflow.definitions import Node
from spanloom.worker.error_text import message_of, traceback_of, type_of
from spanloom.worker.isolated.frames import MalformedFrame
from spanloom.worker.isolated.messages import Call, Cancel, Ended, Failed, Line, Ready, SpanEnded, Start, Unable
from spanloom.worker.isolated.worker_link import WorkerLink
from spanloom.worker.node.attempt import open_span
from spanloom.worker.node.event_loop import Awaited, EventLoopThread
from spanloom.worker.node.lifespan import Lifespan
from spanloom.worker.node.outcomes import of_error, of_result
from spanloom.worker.process.log_setup import configure_logging
from spanloom.worker.telemetry.log_buffer import CURRENT, LogBuffer
from spanloom.worker.telemetry.log_capture import LogCapture

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1  #: of prctl: Linux kills this process when the one that started it is gone
_MAX_PICKLE = 1 << 20  #: bytes of an exception and its attributes


def main(descriptor: int) -> int:
    """Serve the worker at the other end of the connection until it closes that."""
    link = WorkerLink(descriptor)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    start: Start = link.receive()
    sys.path[:] = start.path
    event_loop = EventLoopThread("spanloom-loop")
    capture = LogCapture(start.log_level, capture_output=start.capture_output)
    try:
        engine = _load(start.target)
        configure_logging(engine.settings.log_format, logging.getLevelNamesMapping()[start.log_level.upper()])
        lifespan = Lifespan(engine.lifespan, engine, event_loop)
        state = lifespan.__enter__()
        capture.start()
    except BaseException as error:
        link.leave_fork(error)
        link.send(Unable(f"{type_of(error)}: {message_of(error)}"))
        return 1
    with closing(event_loop), lifespan:
        link.leave_fork()
        link.send(Ready())
        _Serving(link, engine, state, event_loop, capture).run()
    return 0


def _load(target: str) -> WorkflowEngine:
    module, _, path = target.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    assert isinstance(found, WorkflowEngine)
    return found


class _Serving:
    """The calls of one process, one at a time, on the main thread; another one reads the connection."""

    def __init__(
        self,
        link: WorkerLink,
        engine: WorkflowEngine,
        state: Any,
        event_loop: EventLoopThread,
        capture: LogCapture,
    ) -> None:
        self._link = link
        self._engine = engine
        self._state = state
        self._event_loop = event_loop
        self._capture = capture
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._running: _Runtime | None = None

    def run(self) -> None:
        threading.Thread(target=self._read, name="spanloom-calls", daemon=True).start()
        while (call := self._calls.get()) is not None:
            contextvars.copy_context().run(self._run, call)

    def _read(self) -> None:
        with suppress(EOFError, OSError, MalformedFrame):
            while True:
                message = self._link.receive()
                if isinstance(message, Call):
                    self._calls.put(message)
                elif isinstance(message, Cancel) and (running := self._running) and running.number == message.number:
                    running.cancel()
        if self._running is not None:  # nobody waits for its result any more
            os._exit(1)
        self._calls.put(None)

    def _run(self, call: Call) -> None:
        node = Node.model_validate_json(call.node)
        runtime = self._running = _Runtime(call, self._link.send, self._capture)
        attempt = call.context["attempt"]
        try:
            handler = self._engine.registry.handler(node.type)
            result = self._call(handler, node, call, runtime)
            execution_id, limit = call.context["execution_id"], call.payload_limit_bytes
            ending = of_result(result, node, execution_id, limit, handler.encode_result)
            answer: Ended | Failed = Ended(call.number, ending)
        except BaseException as error:
            self._link.leave_fork(error)
            described = (type_of(error), message_of(error), traceback_of(error))
            answer = Failed(call.number, of_error(error, node, attempt), _pickled(error), *described)
        self._link.leave_fork()
        self._running = None
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        self._link.send(answer)

    def _call(self, handler: Handler, node: Node, call: Call, runtime: _Runtime) -> Any:
        context = NodeContext(**call.context, config=handler.config(node), state=self._state, runtime=runtime)
        args, kwargs = handler.arguments(node, context)
        runtime.buffer.bind()
        CURRENT.set(runtime.buffer)
        otel_context.attach(runtime.span_context)
        result = handler.function(*args, **kwargs)
        while hasattr(type(result), "__await__"):
            result = self._event_loop.run(
                Awaited(self._awaited(result), contextvars.copy_context(), begun=runtime.on_cancel)
            )
        return result

    async def _awaited(self, awaitable: Any) -> Any:
        try:
            return await awaitable
        finally:
            self._link.leave_fork(sys.exception())  # a copy has the loop alone, which would go on for ever


class _Runtime:
    """The runtime behind `ctx` (NodeRuntime): lines and spans go to the worker as they come."""

    def __init__(self, call: Call, send: Callable[[object], None], capture: LogCapture) -> None:
        context = call.context
        self.number = call.number
        self._call = call
        self._send = send
        self._interrupt: Callable[[], object] | None = None
        self.cancelled = False
        claim: Any = SimpleNamespace(
            header=SimpleNamespace(execution_id=context["execution_id"], workflow_id=context["workflow_id"]),
            node=SimpleNamespace(node_id=context["node_id"], item=context["item"], attempt=context["attempt"]),
        )
        own = SpanContext(int(call.trace_id, 16), int(call.span_id, 16), True, TraceFlags(call.trace_flags))
        self.span_context = trace.set_span_in_context(NonRecordingSpan(own))
        self.buffer = _SendingBuffer(claim, call, lambda: self.span_context, capture, send)

    @property
    def log(self) -> Any:
        return self.buffer.logger

    def span(self, name: str, attributes: Mapping[str, Any]) -> AbstractContextManager[Span]:
        return open_span(name, attributes, lambda line: self._send(SpanEnded(self.number, line)))

    def heartbeat(self) -> None:
        if self.cancelled:
            raise LeaseLost(self._call.context["execution_id"], self._call.context["node_id"], 0)

    def on_cancel(self, interrupt: Callable[[], object]) -> None:
        self._interrupt = interrupt
        if self.cancelled:
            interrupt()

    def cancel(self) -> None:
        self.cancelled = True
        if self._interrupt is not None:
            self._interrupt()


class _SendingBuffer(LogBuffer):
    """A buffer that keeps no line: each is sent to the worker."""

    def __init__(
        self, claim: Any, call: Call, context: Callable[[], Any], capture: LogCapture, send: Callable[[object], None]
    ) -> None:
        super().__init__(claim, call.trace_id, call.span_id, context, None, capture)
        self._number = call.number
        self._send = send

    def _keep(self, line: LogLine, fields: Mapping[str, Any] | None, *, exported: bool = False) -> None:
        self._send(Line(self._number, line))


class _BoundedBytes:
    """A file in memory that refuses more than an exception may take."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._left = _MAX_PICKLE

    def write(self, data: Any) -> None:
        """Keep the bytes. Raises OverflowError beyond the limit."""
        self._left -= len(data)
        if self._left < 0:
            raise OverflowError
        self.parts.append(bytes(data))


def _pickled(error: BaseException) -> bytes | None:
    """Return an exception as bytes, None if it can't be pickled, or holds too much."""
    file = _BoundedBytes()
    try:
        pickle.Pickler(file).dump(error)
        text = b"".join(file.parts)
        pickle.loads(text)  # noqa: S301  its own
    except concurrent.futures.CancelledError:
        raise
    except BaseException:  # it may hold a lock, or take other arguments than it keeps
        return None
    return text


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
