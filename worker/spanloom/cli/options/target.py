"""Which store and which Redis a command works on: `--app`, or `--store` and `--redis`, or the environment."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click

from spanloom.cli.options.loading import load_engine
from spanloom.engine import NodeRegistry, WorkflowEngine
from spanloom.engine.errors import ConfigurationError, QueueUnavailable
from spanloom.engine.events.listener import Listener
from spanloom.engine.events.stream import EventWatcher
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.settings import Settings
from spanloom.engine.store.port import ExecutionStore
from spanloom.stores import open_store

__all__ = ["Target", "check_shared", "target_options"]


@dataclass(frozen=True, slots=True)
class Target:
    """What the user named; nothing is imported or connected before it is opened."""

    app: str | None = None
    store_url: str | None = None
    redis_url: str | None = None

    def load_app(self) -> WorkflowEngine | None:
        """Import the engine that --app, or else SPANLOOM_APP, names; None if URLs are to be used.

        Raises ConfigurationError.
        """
        urls = self.store_url or self.redis_url
        if self.app and urls:
            raise ConfigurationError("--app brings its own store and Redis; give either --app or --store and --redis")
        name = self.app or (None if urls else os.environ.get("SPANLOOM_APP"))
        return load_engine(name) if name else None

    def find_store(self) -> ExecutionStore:
        """Return the store, not yet opened.

        Raises ConfigurationError if none is named, its URL is wrong, or it lives inside another process.
        """
        engine = self.load_app()
        store = engine.store if engine else self._named_store(Settings.from_environment())
        check_shared(store)
        return store

    @contextmanager
    def store(self) -> Generator[ExecutionStore]:
        """Open the store for a block. Raises what find_store does, StoreUnavailable and StoreNotMigrated."""
        store = self.find_store()
        try:
            store.open()
            yield store
        finally:
            store.close()

    @contextmanager
    def engine(self) -> Generator[WorkflowEngine]:
        """Open the engine for a block, Redis too: who starts something by hand wants to know now that it can't run.

        Raises what store() does, and QueueUnavailable.
        """
        # Imported here: only this needs the worker's package.
        from spanloom.worker.process.log_setup import configure_logging
        from spanloom.worker.process.otel_sdk import configure_sdk

        engine = self.load_app()
        if engine is None:
            settings = Settings.from_environment()
            engine = WorkflowEngine(
                NodeRegistry(), self._store_url(settings), self.redis_url or settings.redis_url, settings=settings
            )
        check_shared(engine.store)
        configure_logging(engine.settings.log_format, logging.WARNING)
        end_traces = configure_sdk("spanloom", signals=("traces",))
        try:
            engine.queue.ping()
            engine.open()
            yield engine
        finally:
            engine.close()
            end_traces()

    @contextmanager
    def operator(self) -> Generator[WorkflowEngine]:
        """Open an engine for a block that changes executions: it registers no workflow, and does without Redis.

        The store is the truth: who has to cancel can't wait for Redis, and the sweep pushes what could not be pushed.
        Raises what store() does.
        """
        from spanloom.worker.process.log_setup import configure_logging
        from spanloom.worker.process.otel_sdk import configure_sdk

        app = self.load_app()
        settings = app.settings if app else Settings.from_environment()
        store = app.store if app else self._named_store(settings)
        check_shared(store)
        redis = app.queue.redis if app else self.redis_url or settings.redis_url
        configure_logging(settings.log_format, logging.WARNING)
        engine = WorkflowEngine(NodeRegistry(), store, redis, settings=settings)
        end_traces = configure_sdk("spanloom", signals=("traces",))
        try:
            engine.open()
            yield engine
        finally:
            engine.close()
            end_traces()

    @contextmanager
    def watcher(self) -> Generator[tuple[ExecutionStore, EventWatcher]]:
        """Open the store for a block, and a way to follow executions: prompt with a Redis, slower without.

        Raises what store() does.
        """
        from spanloom.worker.process.log_setup import configure_logging

        app = self.load_app()
        settings = app.settings if app else Settings.from_environment()
        store = app.store if app else self._named_store(settings)
        check_shared(store)
        queue = app.queue if app else NodeQueue(self.redis_url or settings.redis_url, settings.namespace)
        configure_logging(settings.log_format, logging.WARNING)
        listener: Listener | None = Listener(queue)
        try:
            store.open()
            try:
                queue.ping()
            except QueueUnavailable:
                listener = None
            yield store, EventWatcher(store, listener)
        finally:
            if listener is not None:
                listener.close()
            queue.close()
            store.close()

    def _named_store(self, settings: Settings) -> ExecutionStore:
        return open_store(self._store_url(settings), namespace=settings.namespace)

    def _store_url(self, settings: Settings) -> str:
        url = self.store_url or settings.store_url
        if url is None:
            raise ConfigurationError(
                "no store is named; give --store URL or --app MODULE:ENGINE, or set SPANLOOM_STORE_URL or SPANLOOM_APP"
            )
        return url


def target_options(*, redis: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command `--app`, `--store` and, if it needs one, `--redis`; it gets them as its argument `target`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def with_target(
            *args: Any, app: str | None, store: str | None, redis: str | None = None, **options: Any
        ) -> Any:
            return command(*args, target=Target(app, store, redis), **options)

        decorated = with_target
        if redis:
            decorated = click.option("--redis", metavar="URL", help="Redis. [env: SPANLOOM_REDIS_URL]")(decorated)
        decorated = click.option("--store", metavar="URL", help="The store. [env: SPANLOOM_STORE_URL]")(decorated)
        app_help = "The engine whose store and Redis to use. [env: SPANLOOM_APP]"
        return click.option("--app", metavar="MODULE:ENGINE", help=app_help)(decorated)

    return decorate


def check_shared(store: ExecutionStore) -> None:
    """Raise ConfigurationError if the store can't be seen by other processes: workers and this command are two."""
    if not store.shared:
        raise ConfigurationError(
            f"the store {store.url} lives inside one process, no other can see it; use sqlite:///path.db or postgresql://…"
        )
