"""Workers in threads of this process, for tests, demos and small services."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from spanloom.engine.engine import WorkflowEngine
from spanloom.engine.errors import ConfigurationError
from spanloom.worker.options import WorkerOptions
from spanloom.worker.worker import Worker

__all__ = ["start_workers", "worker_options"]


def worker_options(**options: Any) -> WorkerOptions:
    """Make WorkerOptions of keyword arguments. Raises ConfigurationError, which names the wrong ones."""
    try:
        return WorkerOptions(**options)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise ConfigurationError(f"worker options: {wrong}") from error


@contextmanager
def start_workers(engine: WorkflowEngine, workers: int = 1, **options: Any) -> Generator[list[Worker]]:
    """Run workers while the block lasts, then let them drain.

    Options are WorkerOptions' fields. Raises the error of a worker that could not start or continue. A handler that
    does not end within its grace keeps its thread; its node run is given back.
    """
    if workers < 1:
        raise ConfigurationError(f"start_workers takes the number of workers, 1 or more, not {workers}")
    chosen = worker_options(**options)
    if chosen.name is not None and workers > 1:
        raise ConfigurationError("a name is for one worker; leave it out to start several")
    if chosen.max_nodes is not None or chosen.max_memory is not None:
        raise ConfigurationError(
            "max_nodes and max_memory end a worker's process, and start_workers() runs workers in yours; leave them "
            "out, or use serve() or `spanloom worker`"
        )
    running = [_Running(engine, chosen) for _ in range(workers)]
    for worker in running:
        worker.thread.start()
    try:
        for worker in running:
            worker.wait_ready()
        yield [worker.worker for worker in running]
    finally:
        for worker in running:
            worker.worker.stop()
        for worker in running:
            worker.thread.join()
    for worker in running:
        worker.raise_error()


class _Running:
    """One worker and its thread."""

    def __init__(self, engine: WorkflowEngine, options: WorkerOptions) -> None:
        self._settled = threading.Event()  # it is ready, or it ended before it was
        self.worker = Worker(engine, options, ready=self._settled.set)
        self.thread = threading.Thread(target=self._run, name=f"spanloom-worker-{self.worker.name}", daemon=True)
        self._error: BaseException | None = None

    def wait_ready(self) -> None:
        self._settled.wait()
        self.raise_error()

    def raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self.worker.run()
        except BaseException as error:  # raised by wait_ready() in the thread that started the workers
            self._error = error
        finally:
            self._settled.set()
