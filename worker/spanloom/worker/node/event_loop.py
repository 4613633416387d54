"""The event loop of a worker: one, on a thread of its own, for all its async handlers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import structlog

from spanloom.engine.thread_stacks import frame_of

__all__ = ["Answer", "Awaited", "CancelledByOthers", "EventLoopThread", "Steps"]

_log = structlog.get_logger("spanloom.worker")
_MAX_STACK = 4_000
_BRIEF_ROUNDS = 3  #: of the loop, in which a coroutine that awaits nothing has ended and was seen to
_OWNER: contextvars.ContextVar[object] = contextvars.ContextVar("spanloom_owner", default=None)


Answer = TypeVar("Answer")


@dataclass(slots=True, eq=False)
class Awaited:
    """An awaitable for the loop to run in `context`, for at most `seconds`.

    `begun` is called with a function that cancels it; `owner` is what blocker() returns for it.
    """

    awaitable: Awaitable[Any]
    context: contextvars.Context | None = None
    seconds: float | None = None
    begun: Callable[[Callable[[], object]], object] = lambda cancel: None
    owner: object = None
    took: float = 0.0  #: how long it ran, once it has ended


Steps = Generator[Awaited, Any, Answer]  #: work that yields what it awaits, and is sent the results


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
        self._driving: set[asyncio.Task[Any]] = set()  # of run_steps_on_loop()
        self._turn = _Turn()
        self._cancelled: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()  # by us
        self._closing = threading.Event()
        self.closed = True  # no coroutine keeps its thread
        self.turns = 0  #: rises after each poke() that the loop has answered
        self.poked = False  #: whether a poke() awaits its answer

    def run(self, awaited: Awaited, *, patience: float | None = None) -> Any:
        """Run a coroutine, or await another awaitable, and return its result or raise its error.

        Raises concurrent.futures.CancelledError if its cancel function or cancel_all() ended it, and CancelledByOthers
        if other code has cancelled its task. Raises TimeoutError if it was cancelled after its seconds, or has blocked
        the loop for so long, or if the loop returns nothing for `patience` seconds.
        """
        loop = self._start()
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
        loop.call_soon_threadsafe(self._begin, loop, awaited, answer)
        return answer.result(patience)

    def run_steps(self, steps: Steps[Answer]) -> Answer:
        """Run work in this thread, and what it awaits on the loop."""
        advance: Callable[[Any], Awaited] = steps.send
        value: Any = None
        while True:
            try:
                awaited = advance(value)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # as Steps says
            try:
                advance, value = steps.send, self.run(awaited)
            except BaseException as error:
                advance, value = steps.throw, error

    def run_steps_on_loop(self, steps: Steps[Answer]) -> Answer:
        """Run work on the loop, with what it awaits: the threads meet once, not at each step. It must not block."""
        return self.start_steps(steps).result()

    def start_steps(self, steps: Steps[Answer]) -> concurrent.futures.Future[Answer]:
        """Start work on the loop, with what it awaits. It must not block."""
        loop = self._start()
        answer: concurrent.futures.Future[Answer] = concurrent.futures.Future()

        def begin() -> None:
            task = asyncio.Task(self._drive(loop, steps), loop=loop)
            self._driving.add(task)
            task.add_done_callback(self._driving.discard)
            task.add_done_callback(lambda done: self._transfer(done, answer))

        loop.call_soon_threadsafe(begin)
        return answer

    async def _drive(self, loop: asyncio.AbstractEventLoop, steps: Steps[Answer]) -> Answer:
        turn = self._turn
        advance: Callable[[Any], Awaited] = steps.send
        value: Any = None
        await turn.take()
        try:
            while True:
                awaited = advance(value)
                result: concurrent.futures.Future[Any] = concurrent.futures.Future()
                self._begin(loop, awaited, result)
                await turn.while_brief(result)
                try:
                    advance, value = steps.send, result.result(0)
                except BaseException as error:
                    advance, value = steps.throw, error
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # as Steps says
        finally:
            turn.leave()

    def _begin(self, loop: asyncio.AbstractEventLoop, awaited: Awaited, answer: concurrent.futures.Future[Any]) -> None:
        """Begin an awaitable, on the loop's thread."""
        try:
            if awaited.context is not None:
                awaited.context.run(_OWNER.set, awaited.owner)
            # Not by the loop: a handler may have given it a task factory of its own.
            task = asyncio.Task(_limited(awaited), loop=loop, context=awaited.context)
            self._tasks[task] = awaited.owner
            task.add_done_callback(self._tasks.pop)
            task.add_done_callback(lambda done: self._transfer(done, answer))
            awaited.begun(lambda: loop.call_soon_threadsafe(self._cancel, task))
        except BaseException as error:  # else nobody would be told
            if not answer.done():
                answer.set_exception(error)

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
                thread = threading.Thread(target=_serve, args=(*serving, self._driving), name=self._name, daemon=True)
                thread.start()
                self._thread = thread  # from now on it can die
            return self._loop


class _Turn:
    """The turn of the work that runs on the loop: one after the other, but for what really waits.

    All of them at once would each take as long as all together. Tasks that wait here go on though a handler cancels
    tasks that are not its own.
    """

    def __init__(self) -> None:
        self._taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        while self._taken:
            ahead = asyncio.get_running_loop().create_future()
            self._waiting.append(ahead)
            with suppress(asyncio.CancelledError):
                await ahead
        self._taken = True

    def leave(self) -> None:
        self._taken = False
        while self._waiting:
            if not (ahead := self._waiting.popleft()).done():
                ahead.set_result(None)
                break

    async def while_brief(self, result: concurrent.futures.Future[Any]) -> None:
        """Wait for a result; leave the turn to others if it does not come at once, and take it again then."""
        for _ in range(_BRIEF_ROUNDS):
            if result.done():
                return
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        self.leave()
        while not result.done():
            ended = asyncio.get_running_loop().create_future()
            result.add_done_callback(partial(_end, ended))
            with suppress(asyncio.CancelledError):
                await ended
        await self.take()


def _end(ended: asyncio.Future[None], result: object) -> None:
    if not ended.done():
        ended.set_result(None)


class _Exit:
    """A SystemExit or KeyboardInterrupt as a value: raised, it would end the loop and all other handlers."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def _limited(awaited: Awaited) -> Any:
    began = time.monotonic()
    seconds = awaited.seconds
    try:
        if seconds is None:
            return await awaited.awaitable
        async with asyncio.timeout(seconds):
            result = await awaited.awaitable
        if time.monotonic() - began < seconds:
            return result
        raise TimeoutError  # it blocked the loop, so that nothing could end it in time
    except (SystemExit, KeyboardInterrupt) as error:
        return _Exit(error)
    finally:
        awaited.took = time.monotonic() - began


def _serve(loop: asyncio.AbstractEventLoop, closing: threading.Event, driving: set[asyncio.Task[Any]]) -> None:
    asyncio.set_event_loop(loop)
    try:
        while not closing.is_set():
            try:
                loop.run_forever()  # returns also if a handler stops the loop, which it does not own
            except (SystemExit, KeyboardInterrupt):  # from a task or callback of a handler, outside _limited()
                _log.exception("exit_in_a_task")
        loop.set_task_factory(None)  # a handler may have set one
        loop.run_until_complete(_finish(loop, driving))
    finally:
        loop.close()


async def _finish(loop: asyncio.AbstractEventLoop, driving: set[asyncio.Task[Any]]) -> None:
    own = {asyncio.current_task(), *driving}  # what drives others ends once they have ended
    pending = [task for task in asyncio.all_tasks(loop) if task not in own]
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, *driving, return_exceptions=True)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()
