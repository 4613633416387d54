"""The store and the Redis of a command: by `--app`, by `--store` and `--redis`, or from the environment."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
    """The engine or the URLs that the user gave; nothing is imported or connected before it is opened."""

    app: str | None = None
    store_url: str | None = field(default=None, repr=False)  # a URL may hold a password
    redis_url: str | None = field(default=None, repr=False)

    def load_app(self) -> WorkflowEngine | None:
        """Import the engine of --app or SPANLOOM_APP; return None if URLs are used instead.

        Raises ConfigurationError.
        """
        urls = self.store_url or self.redis_url
        if self.app and urls:
            raise ConfigurationError("--app brings its own store and Redis; give either --app or --store and --redis")
        name = self.app or (None if urls else os.environ.get("SPANLOOM_APP"))
        return load_engine(name, prints=False) if name else None

    def find_store(self) -> ExecutionStore:
        """Return the store, not yet opened.

        Raises ConfigurationError if none is given, if its URL is wrong, or if it lives inside another process.
        """
        engine = self.load_app()
        store = engine.store if engine else self._named_store(Settings.from_environment())
        check_shared(store)
        return store

    @contextmanager
    def store(self, *, create: bool = False) -> Generator[ExecutionStore]:
        """Open the store for a block. A command that only reads creates none.

        Raises the errors of find_store, StoreUnavailable and StoreNotMigrated.
        """
        store = self.find_store()
        try:
            if create:
                store.open()
            else:
                store.open_existing()
            yield store
        finally:
            store.close()

    @contextmanager
    def engine(self) -> Generator[WorkflowEngine]:
        """Open the engine and Redis for a block. A user who starts an execution gets an error at once if it can't run.

        Raises the errors of store(), and QueueUnavailable.
        """
        # Imported here, as other commands do without the worker's package.
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
        """Open an engine for a block that changes executions: it registers no workflow, and does not need Redis.

        A cancellation must not wait for Redis: the store holds the state, and the sweep pushes jobs that could not be
        pushed. Raises the errors of store().
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
            store.open_existing()
            engine.open()
            yield engine
        finally:
            engine.close()
            end_traces()

    @contextmanager
    def watcher(self) -> Generator[tuple[ExecutionStore, EventWatcher]]:
        """Open the store for a block, with a watcher of executions: prompt with a Redis, slower without.

        Raises the errors of store().
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
            store.open_existing()
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
    """Add `--app`, `--store` and, with `redis`, `--redis` to a command, as its argument `target`."""

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
    """Raise ConfigurationError for a store inside one process: this command and the workers are different processes."""
    if not store.shared:
        raise ConfigurationError(
            f"the store {store.url} lives inside one process, no other can see it; use sqlite:///path.db or postgresql://…"
        )
