"""Starting executions again with the data of earlier ones, through the engine."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from spanloom.engine.errors import ConfigurationError, UnknownWorkflow
from spanloom.engine.operations.bulk import ENDED, BulkResult, control_each, find
from spanloom.engine.operations.replay_rules import replay_from
from spanloom.engine.operations.start_options import start_options
from spanloom.engine.store.models import Execution, ExecutionFilter
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Replay, StartRequest
from spanloom.engine.workflow.cache import DefinitionCache

__all__ = ["ExecutionReplays"]


class ExecutionReplays:
    """The part of WorkflowEngine that replays, one execution or all that a filter finds."""

    store: ExecutionStore
    definitions: DefinitionCache

    @abstractmethod
    def open(self) -> None:
        """Connect, if that has not happened yet."""

    @abstractmethod
    def _execution(self, execution_id: str) -> Execution: ...

    @abstractmethod
    def _request(self, workflow_id: str, data: Any, options: Mapping[str, Any]) -> StartRequest: ...

    @abstractmethod
    def _start(self, requests: Sequence[StartRequest], connection: Any) -> list[str]: ...

    def replay_execution(
        self,
        execution_id: str,
        *,
        version: int | Literal["same", "latest"] = "same",
        from_node: str | Sequence[str] | None = None,
        **options: Any,
    ) -> str:
        """Start a new execution with the initial data of an earlier one, and return its id.

        In the same version, the latest, or the one given. With `from_node` (one or several) it begins there: these
        nodes and all that follows from them run anew, the results of the others are taken over, so far as they had
        ended. Takes enqueue_workflow's options but delay and connection; priority, deadline and metadata are
        the earlier execution's unless given. Raises what enqueue_workflow does, UnknownExecution, and UserError for a
        node that the workflow lacks or that nothing led to.
        """
        if refused := options.keys() & {"delay", "connection"}:
            raise ConfigurationError(f"replay_execution takes no {', '.join(sorted(refused))}")
        self.open()
        source = self._execution(execution_id)
        options.setdefault("priority", source.priority.value)
        options.setdefault("metadata", source.metadata)
        options.setdefault("deadline", source.deadline_seconds)
        options["version"] = self._version_of(source, version)
        replay = Replay(source.id)
        if from_node is not None:
            nodes = [from_node] if isinstance(from_node, str) else list(from_node)
            plan = self.definitions.get(source.workflow_id, options["version"])
            replay = replay_from(plan, source.id, self.store.get_node_results(source.id), nodes)
        request = self._request(source.workflow_id, source.input, start_options(**options))
        return self._start([dataclasses.replace(request, replay=replay)], None)[0]

    def replay_executions(
        self,
        wanted: ExecutionFilter,
        *,
        version: int | Literal["same", "latest"] = "same",
        from_node: str | Sequence[str] | None = None,
        limit: int | None = None,
    ) -> BulkResult:
        """Replay the oldest `limit` that a filter finds, of those that ended and have no parent; see Bulk.started."""
        self.open()
        started: dict[str, str] = {}

        def replay(execution_id: str) -> bool:
            started[execution_id] = self.replay_execution(execution_id, version=version, from_node=from_node)
            return True

        roots = wanted.model_copy(update={"root": True})
        bulk = control_each(self.store, find(self.store, roots, ENDED, limit), replay)
        bulk.started.update(started)
        return bulk

    def _version_of(self, source: Execution, version: int | str) -> Any:
        if version == "same":
            return source.version
        if version != "latest":
            return version  # start_options() says if it is none
        latest = self.store.get_workflow_version(source.workflow_id)
        if latest is None:
            raise UnknownWorkflow(source.workflow_id)
        return latest.version
