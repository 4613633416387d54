"""The engine: registers workflows, starts executions and waits for their ends. It runs no node itself."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Unpack

from spanloom.engine.arguments import (
    Bound,
    Count,
    Duration,
    Key,
    Labels,
    Revision,
    Text,
    Timeout,
    Url,
    Version,
    checked_calls,
)
from spanloom.engine.awaitable import awaitable
from spanloom.engine.errors import QueueUnavailable
from spanloom.engine.events.handle import ExecutionHandle
from spanloom.engine.events.listener import Listener
from spanloom.engine.events.stream import AsyncEventStream, EventStream, EventWatcher
from spanloom.engine.events.waiter import Waiter
from spanloom.engine.handlers.builder import WorkflowBuilder, registry_of
from spanloom.engine.handlers.registry import NodeRegistry
from spanloom.engine.logs import Logger
from spanloom.engine.operations.bulk_control import BulkControl
from spanloom.engine.operations.control import EngineParts, Operations, Status
from spanloom.engine.operations.registration import Registrations, WorkflowRef
from spanloom.engine.operations.replay import FromNode, Replays, ReplayVersion
from spanloom.engine.operations.start import ExecutionStarter
from spanloom.engine.operations.start_options import (
    BatchOptions,
    PriorityName,
    ReplayOptions,
    StartOptions,
    start_fields,
)
from spanloom.engine.plugins import load_threads
from spanloom.engine.queue.job_pusher import JobPusher
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.queue.redis_epoch import Epoch
from spanloom.engine.settings import Settings
from spanloom.engine.store.models import Execution
from spanloom.engine.store.opening import store_of
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import NodeJob
from spanloom.engine.store.states import NodeStatus
from spanloom.engine.telemetry.call_metrics import instrument
from spanloom.engine.workflow.cache import CacheOptions, DefinitionCache
from spanloom.engine.workflow.definitions import Workflow

__all__ = ["WorkflowEngine"]

_log = Logger("spanloom.engine")


@checked_calls(but=("push",))
class WorkflowEngine(BulkControl):
    """The entry point of an application: registers workflows, starts executions, follows and controls them.

    Thread-safe; one engine per application is enough. The constructor does no I/O; the first use, or `open()`, does.

    Example, of a process that runs its own workers, with a WorkflowBuilder `orders` and Redis on localhost::

        with WorkflowEngine(orders, "sqlite:///orders.db") as engine, engine.start_workers():
            output = engine.run(orders, {"total": 17}, timeout=30)
    """

    def __init__(
        self,
        workflows: NodeRegistry | WorkflowBuilder[Any] | Sequence[WorkflowBuilder[Any]],
        store: ExecutionStore | Url | None = None,
        redis: Any = None,
        *,
        cache: CacheOptions | None = None,
        lifespan: Any = None,
        settings: Settings | None = None,
    ) -> None:
        """Combine handlers, a store and a Redis. Raises ConfigurationError.

        - `workflows`: a registry of handlers, or builders; `open()` registers the workflows of builders.
        - `store`, `redis`: a store or its URL (default: SPANLOOM_STORE_URL), a client or a URL (SPANLOOM_REDIS_URL).
        - `lifespan`: a function of no argument, or of the engine, that returns a sync or async context manager. It
          makes `ctx.state` once per worker.
        """
        self.settings = settings or Settings.from_environment()
        self.registry, self.builders = registry_of(workflows)
        self.store = store_of(store or self.settings.store_url, self.settings.namespace)
        self.queue = NodeQueue(redis if redis is not None else self.settings.redis_url, self.settings.namespace)
        self.lifespan = lifespan
        # Resolved at each call: the store's methods may be instrumented later.
        self.definitions = DefinitionCache(cache or CacheOptions(), lambda *key: self.store.get_workflow(*key))
        self.epoch = Epoch(self.store, self.queue)
        self._registrations = Registrations(self.store, self.registry, self.builders)
        self.pusher = JobPusher(self.store, self.queue)
        limit = self.settings.payload_limit_bytes
        self._starter = ExecutionStarter(self.open, self.store, self.queue, self.epoch, self.push, self.builders, limit)
        self._parts = EngineParts(self.open, self.store, self.epoch, self.definitions, self.push, limit)
        self.operations = Operations(self._parts)
        self._replays = Replays(self.open, self.store, self.definitions, self._starter)
        self._listener = Listener(self.queue)
        self._waiter = Waiter(self.open, self.store, self._listener, self.settings.join_limit_bytes)
        self._watcher = EventWatcher(self.store, self._listener, self.open)
        self._opening = threading.Lock()
        self._opened = False

    # ---- opening and closing ----

    def open(self) -> None:
        """Connect, check the schema, and register the builders' workflows; a second call does nothing.

        Raises StoreUnavailable, StoreNotMigrated, WorkflowInvalid, and ConfigurationError if this Redis namespace
        belongs to another store. A Redis that does not answer is only logged: jobs are pushed when it is back.
        """
        with self._opening:
            if self._opened:
                return
            instrument(self.store, self.queue)
            self.store.open()
            try:
                try:
                    self.epoch.check()
                except QueueUnavailable as error:
                    _log.warning("queue_unavailable", error=str(error))
                self._registrations.register_builders()
            except BaseException:
                self._release()  # nobody closes an engine that did not open
                raise
            self._opened = True

    def close(self) -> None:
        """Close connections and threads; the engine opens again at its next use."""
        self._listener.close()
        self._release()
        with self._opening:
            self._opened = False

    def _release(self) -> None:
        try:
            self.epoch.release()
        except QueueUnavailable as error:
            _log.debug("namespace_not_released", error=str(error))
        self.queue.close()
        self.store.close()

    aclose = awaitable(close)

    def __enter__(self) -> WorkflowEngine:
        self.open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # ---- workflows ----

    def register_workflow(
        self,
        workflow: Workflow,
        change_notes: Text | None = None,
        *,
        created_by: Text | None = None,
        expected_version: Count | None = None,
    ) -> int:
        """Check a workflow, save it as the next version and return the version.

        Content equal to the newest version's returns that version. Raises WorkflowInvalid with every problem,
        StaleVersion if the newest version is not `expected_version` (0: none), StoreUnavailable; saves nothing then.
        """
        self.open()
        return self._registrations.register(workflow, change_notes, created_by, expected_version)

    # ---- starting and following ----

    def enqueue_workflow(
        self,
        workflow_id: Text,
        data: Any = None,
        *,
        version: Version | None = None,
        priority: PriorityName = "normal",
        delay: Duration | None = None,
        deadline: Duration | None = None,
        idempotency_key: Key | None = None,
        key_ttl: Duration | None = None,
        metadata: Labels | None = None,
        connection: Any = None,
    ) -> str:
        """Start one execution and return its id.

        - `data`: any JSON value or pydantic model. `version`: the version to run (default: the latest now).
        - `priority`: high, normal or low. `delay`, `deadline` (from the start): seconds or a timedelta.
        - `idempotency_key`: the same key returns the same execution for `key_ttl` (default: always).
        - `metadata`: labels by which executions are found.
        - `connection`: the caller's psycopg or SQLAlchemy connection to the same Postgres. The execution starts if and
          only if the caller's transaction commits.

        Once this returns, the execution will run, also if Redis is down now. Raises UnknownWorkflow,
        IdempotencyConflict, PayloadRejected, and ConfigurationError for a wrong option; nothing was started then.

        Raises StoreUnavailable when the store does not answer, after repeated requests. The execution may have been
        started then, if the store failed before its response. Give an `idempotency_key` to start again safely.
        """
        options = start_fields(version, priority, delay, deadline, idempotency_key, key_ttl, metadata)
        return self._starter.start([self._starter.request(workflow_id, data, options)], connection)[0]

    def enqueue_workflows(self, workflow_id: Text, items: Iterable[Any], **options: Unpack[BatchOptions]) -> list[str]:
        """Start one execution for each item, in batches of one round trip, and return their ids in order.

        Takes enqueue_workflow's version, priority, delay, deadline and metadata. An item that can't be encoded is
        refused before any start. If the store fails between two batches, a note on the error lists those started.
        """
        return self._starter.start_each(workflow_id, items, options)

    def start(self, /, workflow: WorkflowRef, data: Any = None, **options: Unpack[StartOptions]) -> ExecutionHandle:
        """Start one execution of a workflow (its builder, definition or id) and return a handle on it.

        Takes enqueue_workflow's options and raises its errors. A builder's workflow runs in the version that this
        engine registered. A Workflow is registered first if it is new.
        """
        self.open()
        workflow_id, pinned = self._registrations.resolve(workflow)
        chosen: StartOptions = {**pinned, **options}
        execution_id = self.enqueue_workflow(workflow_id, data, **chosen)
        return ExecutionHandle(execution_id, self._parts, self._waiter, self._watcher, started=True)

    def run(
        self,
        workflow: WorkflowRef,
        data: Any = None,
        *,
        timeout: Timeout = None,
        **options: Unpack[StartOptions],
    ) -> Any:
        """Start one execution, wait for it and return its output. Raises the errors of start() and of result()."""
        return self.start(workflow, data, **options).result(timeout)

    aenqueue_workflow = awaitable(enqueue_workflow)
    astart = awaitable(start)

    async def arun(
        self,
        workflow: WorkflowRef,
        data: Any = None,
        *,
        timeout: Timeout = None,
        **options: Unpack[StartOptions],
    ) -> Any:
        """Like run(), without blocking the event loop and without a thread per waiter."""
        return await (await self.astart(workflow, data, **options)).aresult(timeout)

    def wait(self, execution_id: str, timeout: Timeout = None) -> Execution:
        """Wait up to `timeout` seconds (None: without limit) for the end, and return the ended execution.

        Raises WaitTimeout (the execution goes on), UnknownExecution, StoreUnavailable.
        """
        return self._waiter.wait(execution_id, timeout)

    async def await_execution(self, execution_id: str, timeout: Timeout = None) -> Execution:
        """Like wait(), on the running event loop, which it never blocks."""
        return await self._waiter.await_execution(execution_id, timeout)

    def events(self, execution_id: str, after: str | None = None, *, timeout: Timeout = None) -> EventStream:
        """Iterate over the events of an execution in commit order, from its start or after a cursor, live.

        Each event is yielded once. Its `cursor` continues after it, in another process too. The iteration ends once the
        end of the execution (completed, failed, cancelled) was read, with all events until then. To follow a failed
        execution that is retried, start again after the latest cursor. Outages of store and Redis are waited out.

        Raises UnknownExecution, ConfigurationError for an invalid cursor, and StoreUnavailable if the store does not
        answer within about a second at first. While iterating, it raises WaitTimeout after `timeout` seconds (None:
        never), and UnknownExecution if the execution was purged.
        """
        return self._watcher.events(execution_id, after, timeout)

    def aevents(self, execution_id: str, after: str | None = None, *, timeout: Timeout = None) -> AsyncEventStream:
        """Like events(), for `async for`: never blocks the event loop, needs no thread per watcher.

        Errors that events() raises at once are raised with the first event.
        """
        return self._watcher.aevents(execution_id, after, timeout)

    # ---- control ----
    # Each changes all descendants in one step, except set_execution_status to failed, acknowledge_execution and
    # update_node_result. Each raises UnknownExecution, InvalidTransition where the table of states forbids it,
    # StaleVersion if `expected_revision` is given and not the execution's, and StoreUnavailable.

    def cancel_execution(self, execution_id: str, *, expected_revision: Revision = None) -> bool:
        """Cancel an execution: no further node starts, and running nodes are not recorded as completed.

        Returns True if this call cancelled it, False if it was cancelled already.
        """
        return self.operations.of(execution_id).cancel(expected_revision=expected_revision)

    def pause_execution(self, execution_id: str, *, expected_revision: Revision = None) -> bool:
        """Pause an execution: running nodes may end, no other starts until it is resumed. Its deadline still counts.

        Returns True if this call paused it, False if it was paused already.
        """
        return self.operations.of(execution_id).pause(expected_revision=expected_revision)

    def resume_execution(self, execution_id: str, *, expected_revision: Revision = None) -> bool:
        """Resume a paused execution. A delay that is not over continues.

        Returns True if this call resumed it, False if it was running already.
        """
        return self.operations.of(execution_id).resume(expected_revision=expected_revision)

    def retry_execution(self, execution_id: str, *, expected_revision: Revision = None) -> bool:
        """Continue a failed execution: failed nodes run again, completed nodes keep their results.

        A child that failed is retried in the same way. Nodes that followed a handled failure run again.
        """
        return self.operations.of(execution_id).retry(expected_revision=expected_revision)

    def acknowledge_execution(self, execution_id: str, *, expected_revision: Revision = None) -> bool:
        """Acknowledge a failed execution: it is no dead letter any more, unless it is retried and fails again.

        Returns True if this call acknowledged it, False if it was acknowledged already.
        """
        return self.operations.of(execution_id).acknowledge(expected_revision=expected_revision)

    def set_execution_status(
        self, execution_id: str, status: Status, *, error: str | None = None, expected_revision: Revision = None
    ) -> bool:
        """Bring an execution to a status by the transition that leads there; return False if it has it already.

        - cancelled, paused, and running (from paused or failed) do the same as the methods above.
        - failed ends it with `error`, as a deadline does: ready node runs are held, its children are left alone.
        - completed is refused: an execution completes by its nodes only, which update_node_result can end.
        """
        return self.operations.of(execution_id).set_status(status, error=error, expected_revision=expected_revision)

    def update_node_result(
        self,
        execution_id: str,
        node_id: str,
        status: NodeStatus | str = NodeStatus.COMPLETED,
        *,
        item: Count = 0,
        data: Any = None,
        error: str | None = None,
        next_nodes: Sequence[str] | None = None,
    ) -> None:
        """End an open node manually, in place of a worker: completed with `data`, failed with `error`, or skipped.

        As after a worker's record, successors run, and the execution may end. Raises UserError for an unknown node, and
        InvalidTransition for one that a live worker runs, that waits for its items, is not ready or has ended.
        """
        self.operations.of(execution_id).update_node_result(
            node_id, status, item=item, data=data, error=error, next_nodes=next_nodes
        )

    def replay_execution(
        self,
        execution_id: str,
        *,
        version: ReplayVersion = "same",
        from_node: FromNode = None,
        **options: Unpack[ReplayOptions],
    ) -> str:
        """Start a new execution with the initial data of an earlier one, and return its id.

        With `from_node`, these nodes and all their descendants run anew; the results of the other nodes are taken over,
        if they had ended. Takes enqueue_workflow's options except delay and connection; priority, deadline and metadata
        are the earlier execution's unless given. Raises the errors of enqueue_workflow, UnknownExecution, and UserError
        for a node that the workflow lacks or that was not reached.
        """
        return self._replays.replay(execution_id, version=version, from_node=from_node, **options)

    # ---- running ----

    def start_workers(self, workers: Bound = 1, **options: Any) -> AbstractContextManager[Any]:
        """Run workers in threads of this process while the block lasts; they drain when it ends.

        Options are those of spanloom.worker.WorkerOptions (queues, concurrency, …).
        """
        return load_threads()(self, workers, **options)

    def push(self, jobs: Sequence[NodeJob], *, ended: Iterable[str] = (), changed: Iterable[str] = ()) -> None:
        """Push jobs, and publish ends and changes. An outage is logged once; the sweep pushes the jobs after it."""
        try:
            self.pusher.push(jobs, ended=ended, changed=changed)
        except QueueUnavailable as error:
            # A watcher that is not notified of a change polls the store anyway.
            say = _log.warning if jobs and not error.known else _log.debug
            say("push_deferred", jobs=len(jobs), error=str(error))

    def encode_input(self, workflow_id: Text, data: Any) -> str:
        """Return initial data as JSON text, validated if a builder of this engine has an input type.

        Raises PayloadRejected.
        """
        return self._starter.encode_input(workflow_id, data)
