"""Registration: checks workflows against the handlers and saves them as versions."""

from __future__ import annotations

from typing import Any, NamedTuple

from spanloom.engine.arguments import Text
from spanloom.engine.errors import ConfigurationError
from spanloom.engine.handlers.builder import WorkflowBuilder
from spanloom.engine.handlers.registry import NodeRegistry
from spanloom.engine.limits import MAX_NAME, MAX_NOTES
from spanloom.engine.operations.start_options import StartOptions
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.workflow.definitions import Workflow
from spanloom.engine.workflow.validation import validate

__all__ = ["Registrations", "WorkflowRef"]


class _Registered(NamedTuple):
    builder: WorkflowBuilder[Any]
    revision: int
    version: int


WorkflowRef = Text | Workflow | WorkflowBuilder[Any]  #: a workflow's id, its definition, or its builder


class Registrations:
    """The registrar of an engine's workflows, in a store that is open."""

    def __init__(
        self, store: ExecutionStore, registry: NodeRegistry, builders: dict[str, WorkflowBuilder[Any]]
    ) -> None:
        """Take the engine's builders by their ids; one that is made again takes the place of the older."""
        self._store = store
        self._registry = registry
        self._builders = builders
        self._registered: dict[str, _Registered] = {}

    def register(
        self,
        workflow: Workflow,
        change_notes: str | None = None,
        created_by: str | None = None,
        expected_version: int | None = None,
    ) -> int:
        """Check a workflow and save it, unless its newest version is the same; return its version."""
        for name, text, limit in (("change_notes", change_notes, MAX_NOTES), ("created_by", created_by, MAX_NAME)):
            if text is not None and len(text) > limit:
                raise ConfigurationError(f"{name} has {len(text):,} characters, more than {limit:,}")
        validate(workflow, self._registry)
        return self._store.save_workflow(
            workflow, change_notes=change_notes, created_by=created_by, expected_version=expected_version
        )

    def register_builders(self) -> None:
        """Register the workflows of the builders."""
        for builder in tuple(self._builders.values()):
            self._register(builder)

    def resolve(self, workflow: WorkflowRef) -> tuple[str, StartOptions]:
        """Return a workflow's id, and the option that pins its version unless only its id was given.

        A Workflow is registered, and a builder with nodes that were added or replaced since, or that was made again.
        Raises ConfigurationError for a builder that was not given to this engine.
        """
        if isinstance(workflow, WorkflowBuilder):
            known = self._registered.get(workflow.id)
            if known is None or known.builder is not workflow or known.revision != workflow.revision:
                known = self._register_again(workflow)
            return workflow.id, {"version": known.version}
        if isinstance(workflow, Workflow):
            return workflow.id, {"version": self.register(workflow)}
        return workflow, {}

    def _register(self, builder: WorkflowBuilder[Any]) -> _Registered:
        revision = builder.revision  # read first: a node that is added meanwhile is registered at the next start
        made = self._registered[builder.id] = _Registered(builder, revision, self.register(builder.workflow))
        return made

    def _register_again(self, builder: WorkflowBuilder[Any]) -> _Registered:
        older = self._builders.get(builder.id)
        if older is None or (older is not builder and not builder.replaces(older)):
            another = "" if older is None else ", which has another builder of that id"
            raise ConfigurationError(
                f"workflow {builder.id!r} was not given to this engine{another}: WorkflowEngine([…])"
            )
        self._registry.include(builder.registry)
        self._builders[builder.id] = builder
        return self._register(builder)
