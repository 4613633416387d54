"""The event loop of a worker: one, on a thread of its own, for all its async handlers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
import traceback
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from spanloom.engine.thread_stacks import frame_of

__all__ = ["CancelledByOthers", "EventLoopThread"]

_log = structlog.get_logger("spanloom.worker")
_MAX_STACK = 4_000
_OWNER: contextvars.ContextVar[object] = contextvars.ContextVar("spanloom_owner", default=None)


class CancelledByOthers(Exception):
    """Raised when the task of a coroutine was cancelled by other code than this worker's and its own."""

    def __init__(self) -> None:
        super().__init__(
            "its task was cancelled, though nobody has cancelled its execution: some handler of this worker cancels "
            "tasks that are not its own, as with asyncio.all_tasks(); it should cancel those only that it has made"
        )


class EventLoopThread:
    """An event loop on a thread of its own, which runs coroutines for other threads. Starts at its first use."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: dict[asyncio.Task[Any], object] = {}  # with their owners
        self._cancelled: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()  # by us
        self._closing = threading.Event()
        self.closed = True  # no coroutine keeps its thread
        self.turns = 0  #: rises after each poke() that the loop has answered
        self.poked = False  #: whether a poke() awaits its answer

    def run(
        self,
        coroutine: Awaitable[Any],
        context: contextvars.Context | None = None,
        seconds: float | None = None,
        *,
        patience: float | None = None,
        begun: Callable[[Callable[[], object]], object] = lambda cancel: None,
        owner: object = None,
    ) -> Any:
        """Run a coroutine, or await another awaitable, in `context`, and return its result or raise its error.

        `begun` is called with a function that cancels the coroutine; `owner` is what blocker() returns for it. Raises
        concurrent.futures.CancelledError if that function or cancel_all() ended it, and CancelledByOthers if other code
        has cancelled its task. Raises TimeoutError if it was cancelled after `seconds`, or has blocked the loop for so
        long, or if the loop returns nothing for `patience` seconds.
        """
        loop = self._start()
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()

        if context is not None:
            context.run(_OWNER.set, owner)

        def begin() -> None:
            try:
                # Not by the loop: a handler may have given it a task factory of its own.
                task = asyncio.Task(_limited(coroutine, seconds), loop=loop, context=context)
                self._tasks[task] = owner
                task.add_done_callback(self._tasks.pop)
                task.add_done_callback(lambda done: self._transfer(done, answer))
                begun(lambda: loop.call_soon_threadsafe(self._cancel, task))
            except BaseException as error:  # else nobody would be told
                if not answer.done():
                    answer.set_exception(error)

        loop.call_soon_threadsafe(begin)
        return answer.result(patience)

    def cancel_all(self) -> None:
        """Cancel all running coroutines; they may still clean up."""
        if self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._cancel_tasks)

    def _cancel_tasks(self) -> None:
        for task in tuple(self._tasks):
            self._cancel(task)

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        self._cancelled.add(task)
        task.cancel()

    def _transfer(self, done: asyncio.Task[Any], answer: concurrent.futures.Future[Any]) -> None:
        if done.cancelled() and done in self._cancelled:
            answer.set_exception(concurrent.futures.CancelledError())
        elif done.cancelled() and done.cancelling():
            answer.set_exception(CancelledByOthers())
        elif done.cancelled():
            try:
                done.result()
            except asyncio.CancelledError as own:  # as of a task that the handler has cancelled
                answer.set_exception(own)
        elif (error := done.exception()) is not None:
            answer.set_exception(error)
        elif isinstance(result := done.result(), _Exit):
            answer.set_exception(result.error)
        else:
            answer.set_result(result)

    @property
    def died(self) -> bool:
        """Whether its thread has ended without close()."""
        thread = self._thread
        return thread is not None and not thread.is_alive()

    def poke(self) -> None:
        """Have the loop count a turn as soon as it can, if it has anything to run."""
        loop = self._loop
        if loop is not None and self._tasks and not self.poked and loop.is_running():
            self.poked = True
            loop.call_soon_threadsafe(self._answer)

    def blocker(self) -> tuple[object, str]:
        """Return the owner of the coroutine that runs at this moment, None if it is not known, and its stack."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None or thread.ident is None:
            return None, ""
        frame = frame_of(thread.ident)
        stack = "" if frame is None else "".join(traceback.format_stack(frame))[-_MAX_STACK:]
        task = asyncio.current_task(loop)
        if task is None or task in self._tasks:
            return (None if task is None else self._tasks[task]), stack
        context = getattr(task, "get_context", None)  # of a task that the handler has made; from Python 3.12 on
        return (None if context is None else context().get(_OWNER)), stack

    def owners(self) -> list[object]:
        """Return the owners of all that runs or waits on the loop."""
        return list(self._tasks.values())

    def _answer(self) -> None:
        self.turns += 1
        self.poked = False

    def close(self, patience: float = 5.0) -> None:
        """Stop the loop and wait up to `patience` seconds for its thread; `closed` is False if a coroutine keeps it."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is not None and thread is not None:
            self._closing.set()
            loop.call_soon_threadsafe(loop.stop)
            thread.join(patience)
            self.closed = not thread.is_alive()

    def _start(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop, self._closing = asyncio.new_event_loop(), threading.Event()
                serving = (self._loop, self._closing)
                thread = threading.Thread(target=_serve, args=serving, name=self._name, daemon=True)
                thread.start()
                self._thread = thread  # from now on it can die
            return self._loop


class _Exit:
    """A SystemExit or KeyboardInterrupt as a value: raised, it would end the loop and all other handlers."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def _limited(coroutine: Awaitable[Any], seconds: float | None) -> Any:
    began = asyncio.get_running_loop().time()
    try:
        if seconds is None:
            return await coroutine
        async with asyncio.timeout(seconds):
            result = await coroutine
        if asyncio.get_running_loop().time() - began < seconds:
            return result
        raise TimeoutError  # it blocked the loop, so that nothing could end it in time
    except (SystemExit, KeyboardInterrupt) as error:
        return _Exit(error)


def _serve(loop: asyncio.AbstractEventLoop, closing: threading.Event) -> None:
    asyncio.set_event_loop(loop)
    try:
        while not closing.is_set():
            try:
                loop.run_forever()  # returns also if a handler stops the loop, which it does not own
            except (SystemExit, KeyboardInterrupt):  # from a task or callback of a handler, outside _limited()
                _log.exception("exit_in_a_task")
        loop.set_task_factory(None)  # a handler may have set one
        loop.run_until_complete(_finish(loop))
    finally:
        loop.close()


async def _finish(loop: asyncio.AbstractEventLoop) -> None:
    pending = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()
