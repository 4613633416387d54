"""The engine: registers workflows, starts executions of them and waits for their ends. Runs no node itself."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from spanloom.engine.errors import (
    ConfigurationError,
    QueueUnavailable,
    SpanloomError,
    StoreUnavailable,
)
from spanloom.engine.events.following import ExecutionFollowing
from spanloom.engine.events.handle import ExecutionHandle
from spanloom.engine.handlers.builder import WorkflowBuilder
from spanloom.engine.handlers.registry import NodeRegistry
from spanloom.engine.ids import uuid7
from spanloom.engine.logs import Logger
from spanloom.engine.operations.control import ExecutionControl
from spanloom.engine.operations.replay import ExecutionReplays
from spanloom.engine.operations.start_options import Duration, start_options
from spanloom.engine.payload import encode
from spanloom.engine.plugins import WORKERS, plugins
from spanloom.engine.queue.epoch import Epoch
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.settings import Settings
from spanloom.engine.store.opening import open_store
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import NodeJob, StartAnswer, StartRequest, StartResult
from spanloom.engine.telemetry.call_metrics import instrument
from spanloom.engine.telemetry.instruments import count_started
from spanloom.engine.telemetry.spans import export_start
from spanloom.engine.telemetry.tracing import sdk, start_trace
from spanloom.engine.workflow.cache import CacheOptions, DefinitionCache
from spanloom.engine.workflow.definitions import Workflow
from spanloom.engine.workflow.validation import validate

__all__ = ["WorkflowEngine"]

_log = Logger("spanloom.engine")
_START_BATCH = 500
_RESEND_SECONDS = (0.05, 0.25)  #: pauses before a start whose answer did not come is sent again: a broken connection

WorkflowRef = str | Workflow | WorkflowBuilder[Any]


class WorkflowEngine(ExecutionControl, ExecutionReplays, ExecutionFollowing):
    """Register workflows, start executions and follow them. Thread-safe; one per application is enough.

    The constructor does no I/O: the first use, or `open()`, does.
    """

    def __init__(
        self,
        workflows: NodeRegistry | WorkflowBuilder[Any] | Sequence[WorkflowBuilder[Any]],
        store: ExecutionStore | str | None = None,
        redis: Any = None,
        *,
        cache: CacheOptions | None = None,
        lifespan: Any = None,
        settings: Settings | None = None,
    ) -> None:
        """Join handlers, a store and a Redis.

        `workflows` is a registry of handlers, or builders (whose workflows `open()` registers). `store` is a store or
        its URL (default: SPANLOOM_STORE_URL), `redis` a client or URL (default: SPANLOOM_REDIS_URL). `lifespan` makes
        `ctx.state` once per worker process: a function of no argument, or of the engine, that returns a sync or async
        context manager. Raises ConfigurationError.
        """
        self.settings = settings or Settings.from_environment()
        self.registry, self.builders = _handlers(workflows)
        self.store = _store(store or self.settings.store_url, self.settings)
        self.queue = NodeQueue(redis if redis is not None else self.settings.redis_url, self.settings.namespace)
        self.lifespan = lifespan
        # Looked up at each call: clocks may be put around the store's methods later.
        self.definitions = DefinitionCache(cache or CacheOptions(), lambda *key: self.store.get_workflow(*key))
        self.epoch = Epoch(self.store, self.queue)
        ExecutionFollowing.__init__(self, self.store, self.queue)
        self._opening = threading.Lock()
        self._opened = False
        self._versions: dict[str, int] = {}  # of the builders' workflows, as this engine registered them

    # ---- opening and closing ----

    def open(self) -> None:
        """Connect, check the schema, register the builders' workflows; twice is no error.

        Raises StoreUnavailable, StoreNotMigrated, WorkflowInvalid, and ConfigurationError if this Redis namespace
        belongs to another store. A Redis that does not answer is logged: what is started now is pushed once it is back.
        """
        with self._opening:
            if self._opened:
                return
            instrument(self.store, self.queue)
            self.store.open()
            try:
                self.epoch.check()
            except QueueUnavailable as error:
                _log.warning("queue_unavailable", error=str(error))
            for builder in self.builders.values():
                self._versions[builder.id] = self._register(builder.workflow)
            self._opened = True

    def close(self) -> None:
        """Give up connections and threads; the engine opens again at its next use."""
        self._listener.close()
        try:
            self.epoch.release()
        except QueueUnavailable as error:
            _log.debug("namespace_not_released", error=str(error))
        self.queue.close()
        self.store.close()
        with self._opening:
            self._opened = False

    async def aclose(self) -> None:
        """Like close(), without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> WorkflowEngine:
        self.open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # ---- workflows ----

    def register_workflow(
        self,
        workflow: Workflow,
        change_notes: str | None = None,
        *,
        created_by: str | None = None,
        expected_version: int | None = None,
    ) -> int:
        """Check a workflow and save it as the next version; content equal to the newest version's returns that one.

        Raises WorkflowInvalid with every problem, StaleVersion if the newest version is not `expected_version`
        (0: none yet), StoreUnavailable. Nothing is saved then.
        """
        self.open()
        return self._register(workflow, change_notes, created_by, expected_version)

    def _register(
        self,
        workflow: Workflow,
        change_notes: str | None = None,
        created_by: str | None = None,
        expected_version: int | None = None,
    ) -> int:
        validate(workflow, self.registry)
        return self.store.save_workflow(
            workflow, change_notes=change_notes, created_by=created_by, expected_version=expected_version
        )

    # ---- starting ----

    def enqueue_workflow(
        self,
        workflow_id: str,
        data: Any = None,
        *,
        version: int | None = None,
        priority: str = "normal",
        delay: Duration | None = None,
        deadline: Duration | None = None,
        idempotency_key: str | None = None,
        key_ttl: Duration | None = None,
        metadata: Mapping[str, str] | None = None,
        connection: Any = None,
    ) -> str:
        """Start one execution and return its id.

        `data` is any JSON value or pydantic model; `version` pins one (default: the latest now); `priority` is high,
        normal or low; `delay` and `deadline` (from its start) are seconds or a timedelta. The same `idempotency_key`
        returns the same execution for `key_ttl` (default: always). `metadata` finds executions again. `connection`, a
        psycopg or SQLAlchemy connection of the caller's to the same Postgres, starts it if and only if the
        caller's transaction commits.

        Once this returns the execution will run, also if Redis is down now. Raises UnknownWorkflow,
        IdempotencyConflict, PayloadRejected, ConfigurationError for a wrong option; nothing was started then. Raises
        StoreUnavailable when the store does not answer, also not when it is asked again: where it went away before it
        could answer, the execution may have been started. Whoever starts again then should give an `idempotency_key`.
        """
        options = start_options(version, priority, delay, deadline, idempotency_key, key_ttl, metadata)
        return self._start([self._request(workflow_id, data, options)], connection)[0]

    def enqueue_workflows(self, workflow_id: str, items: Iterable[Any], **options: Any) -> list[str]:
        """Start one execution for each item, in batches of one round trip, and return their ids in order.

        Takes enqueue_workflow's version, priority, delay, deadline and metadata for all of them. An item that
        can't be encoded is refused before any is started. If the store goes away in the middle, a note on its error
        names the executions that had been started.
        """
        if refused := options.keys() - {"version", "priority", "delay", "deadline", "metadata"}:
            raise ConfigurationError(f"enqueue_workflows takes no {', '.join(sorted(refused))}; use enqueue_workflow")
        checked = start_options(**options)
        requests = [self._request(workflow_id, item, checked) for item in items]
        ids: list[str] = []
        for first in range(0, len(requests), _START_BATCH):
            try:
                ids += self._start(requests[first : first + _START_BATCH], None)
            except SpanloomError as error:
                if ids:
                    error.add_note(f"{len(ids)} of {len(requests)} had been started before: {', '.join(ids)}")
                raise
        return ids

    def start(self, workflow: WorkflowRef, data: Any = None, **options: Any) -> ExecutionHandle:
        """Start one execution of a workflow (its builder, definition or id) and return a handle on it.

        Takes enqueue_workflow's options and raises its errors. A builder's workflow runs in the version that this
        engine registered; a Workflow is registered first if it is new.
        """
        self.open()
        if isinstance(workflow, WorkflowBuilder):
            if workflow.id not in self._versions:
                raise ConfigurationError(f"workflow {workflow.id!r} was not given to this engine: WorkflowEngine([…])")
            options.setdefault("version", self._versions[workflow.id])
            return ExecutionHandle(self, self.enqueue_workflow(workflow.id, data, **options))
        if isinstance(workflow, Workflow):
            options.setdefault("version", self._register(workflow))
            return ExecutionHandle(self, self.enqueue_workflow(workflow.id, data, **options))
        return ExecutionHandle(self, self.enqueue_workflow(workflow, data, **options))

    def run(self, workflow: WorkflowRef, data: Any = None, *, timeout: float | None = None, **options: Any) -> Any:
        """Start one execution, wait for it and return its output. Raises what start() and its handle's result() do."""
        return self.start(workflow, data, **options).result(timeout)

    async def aenqueue_workflow(self, workflow_id: str, data: Any = None, **options: Any) -> str:
        """Like enqueue_workflow, without blocking the event loop."""
        return await asyncio.to_thread(self.enqueue_workflow, workflow_id, data, **options)

    async def astart(self, workflow: WorkflowRef, data: Any = None, **options: Any) -> ExecutionHandle:
        """Like start(), without blocking the event loop."""
        return await asyncio.to_thread(self.start, workflow, data, **options)

    async def arun(
        self, workflow: WorkflowRef, data: Any = None, *, timeout: float | None = None, **options: Any
    ) -> Any:
        """Like run(), without blocking the event loop and without a thread per waiter."""
        return await (await self.astart(workflow, data, **options)).aresult(timeout)

    # ---- running ----

    def start_workers(self, workers: int = 1, **options: Any) -> AbstractContextManager[Any]:
        """Run workers in threads of this process while the block lasts; they drain when it ends.

        Options are those of spanloom.worker.WorkerOptions (queues, concurrency, …).
        """
        if "threads" not in (installed := plugins(WORKERS)):  # an entry point, as of stores: the engine knows no worker
            raise ConfigurationError("no installed package runs workers in threads; reinstall spanloom")
        running: AbstractContextManager[Any] = installed["threads"].load()(self, workers, **options)
        return running

    def push(self, jobs: Sequence[NodeJob], *, ended: Iterable[str] = (), changed: Iterable[str] = ()) -> None:
        """Put on Redis what the store decided. That Redis is away is logged once; the sweep pushes when it is back."""
        try:
            self.queue.push(jobs, ended=ended, changed=changed)
        except QueueUnavailable as error:
            # Who is not told of a change looks at the store anyway.
            say = _log.warning if jobs and not error.known else _log.debug
            say("push_deferred", jobs=len(jobs), error=str(error))

    def encode_input(self, workflow_id: str, data: Any) -> str:
        """Return initial data as JSON text, validated where a builder of this engine says what it is.

        Raises PayloadRejected.
        """
        if builder := self.builders.get(workflow_id):
            data = builder.validate_input(data)
        return encode(data, f"the input of workflow {workflow_id!r}", self.settings.payload_limit_bytes)

    def _request(self, workflow_id: str, data: Any, options: Mapping[str, Any]) -> StartRequest:
        text = self.encode_input(workflow_id, data)
        trace = start_trace(workflow_id)
        return StartRequest(
            execution_id=uuid7(),
            workflow_id=workflow_id,
            input=text,
            input_hash=hashlib.sha256(text.encode()).hexdigest() if options["idempotency_key"] else "",
            trace_parent=trace.trace_parent,
            trace_state=trace.trace_state,
            caller_span_id=trace.caller_span_id,
            **options,
        )

    def _start(self, requests: Sequence[StartRequest], connection: Any) -> list[str]:
        self.open()
        answers = self._create(requests, connection)
        started = [answer for answer in answers if isinstance(answer, StartResult)]
        if sdk() is not None:
            self._export_starts(requests, answers)
        if jobs := [job for answer in started for job in answer.jobs]:
            self.push(jobs)
        count_started(requests, answers)
        for answer in answers:
            if isinstance(answer, SpanloomError):
                raise answer
        return [answer.execution_id for answer in started]

    def _export_starts(self, requests: Sequence[StartRequest], answers: Sequence[StartAnswer]) -> None:
        now_ns = time.time_ns()
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, StartResult):
                lists = [self.queue.list_name(job.queue, job.priority) for job in answer.jobs]
                export_start(request, answer.created_at, lists=lists, end_ns=now_ns)

    def _create(self, requests: Sequence[StartRequest], connection: Any) -> list[StartAnswer]:
        """Create executions; what may have been created, but was not answered, is asked for again by its id."""
        for pause in _RESEND_SECONDS if connection is None else ():
            try:
                return self.store.create_executions(requests, epoch=self.epoch.recent())
            except StoreUnavailable as error:
                _log.warning("start_sent_again", executions=len(requests), error=str(error))
                time.sleep(pause)
        return self.store.create_executions(requests, epoch=self.epoch.recent(), connection=connection)


def _handlers(
    workflows: NodeRegistry | WorkflowBuilder[Any] | Sequence[WorkflowBuilder[Any]],
) -> tuple[NodeRegistry, dict[str, WorkflowBuilder[Any]]]:
    if isinstance(workflows, NodeRegistry):
        return workflows, {}
    builders = [workflows] if isinstance(workflows, WorkflowBuilder) else list(workflows)
    registry = NodeRegistry()
    by_id: dict[str, WorkflowBuilder[Any]] = {}
    for builder in builders:
        if not isinstance(builder, WorkflowBuilder):
            raise ConfigurationError(
                f"WorkflowEngine takes a NodeRegistry or WorkflowBuilders, not {type(builder).__name__}"
            )
        if builder.id in by_id:
            raise ConfigurationError(f"two builders make workflow {builder.id!r}; give one of them another id")
        by_id[builder.id] = builder
        registry.merge(builder.registry)
    return registry, by_id


def _store(given: ExecutionStore | str | None, settings: Settings) -> ExecutionStore:
    if isinstance(given, ExecutionStore):
        return given
    if given is None:
        raise ConfigurationError(
            "no store: pass store=, or set SPANLOOM_STORE_URL (memory://, sqlite:///…, postgresql://…)"
        )
    if not isinstance(given, str):
        raise ConfigurationError(f"store= takes a URL or an ExecutionStore, not {type(given).__name__}")
    return open_store(given, namespace=settings.namespace)
