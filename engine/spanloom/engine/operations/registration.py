"""Registration: checks workflows against the handlers and saves them as versions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from spanloom.engine.errors import ConfigurationError
from spanloom.engine.handlers.builder import WorkflowBuilder
from spanloom.engine.handlers.registry import NodeRegistry
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.workflow.definitions import Workflow
from spanloom.engine.workflow.validation import validate

__all__ = ["Registrations", "WorkflowRef"]

WorkflowRef = str | Workflow | WorkflowBuilder[Any]  #: a workflow's id, its definition, or its builder


class Registrations:
    """The registrar of an engine's workflows, in a store that is open."""

    def __init__(self, store: ExecutionStore, registry: NodeRegistry) -> None:
        self._store = store
        self._registry = registry
        self._versions: dict[str, int] = {}  # of the builders' workflows, as this engine registered them

    def register(
        self,
        workflow: Workflow,
        change_notes: str | None = None,
        created_by: str | None = None,
        expected_version: int | None = None,
    ) -> int:
        """Check a workflow and save it, unless its newest version is the same; return its version."""
        validate(workflow, self._registry)
        return self._store.save_workflow(
            workflow, change_notes=change_notes, created_by=created_by, expected_version=expected_version
        )

    def register_builders(self, builders: Iterable[WorkflowBuilder[Any]]) -> None:
        """Register the workflows of builders."""
        for builder in builders:
            self._versions[builder.id] = self.register(builder.workflow)

    def resolve(self, workflow: WorkflowRef) -> tuple[str, dict[str, Any]]:
        """Return a workflow's id, and the option that pins its version unless only its id was given.

        A Workflow is registered. Raises ConfigurationError for a builder that was not given to this engine.
        """
        if isinstance(workflow, WorkflowBuilder):
            if workflow.id not in self._versions:
                raise ConfigurationError(f"workflow {workflow.id!r} was not given to this engine: WorkflowEngine([…])")
            return workflow.id, {"version": self._versions[workflow.id]}
        if isinstance(workflow, Workflow):
            return workflow.id, {"version": self.register(workflow)}
        return workflow, {}
