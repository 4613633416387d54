"""The filter options by which lists and bulk commands select executions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import Any

import click

from spanloom.cli.options.parameters import find_execution, moment, pair
from spanloom.engine.store.models import ExecutionFilter
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.states import ExecutionStatus

__all__ = ["Selection", "selection_options"]


@dataclass(frozen=True, slots=True)
class Selection:
    """The values of a command's filter options; every given value must match."""

    workflow: str | None = None
    status: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    parent: str | None = None
    since: datetime | None = None
    before: datetime | None = None

    def __bool__(self) -> bool:
        """Return whether any option was given; without one, all executions are meant."""
        return self != Selection()

    def filter(self, store: ExecutionStore, **more: Any) -> ExecutionFilter:
        """Return the selection as a filter, with `more` of its fields. Raises the errors of find_execution."""
        fields: dict[str, Any] = {
            "workflow_id": self.workflow,
            "status": ExecutionStatus(self.status) if self.status else None,
            "parent_execution_id": find_execution(store, self.parent).id if self.parent else None,
            "created_after": self.since,
            "created_before": self.before,
            "metadata": dict(self.metadata),
        }
        return ExecutionFilter(**fields | more)


def selection_options(*statuses: ExecutionStatus) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the filter options to a command, as its argument `selection`; `--status` only if `statuses` are given."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def with_selection(
            *args: Any,
            workflow: str | None,
            metadata: tuple[tuple[str, str], ...],
            parent: str | None,
            since: datetime | None,
            before: datetime | None,
            status: str | None = None,
            **options: Any,
        ) -> Any:
            selection = Selection(workflow, status, metadata, parent, since, before)
            return command(*args, selection=selection, **options)

        decorated: Callable[..., Any] = with_selection
        for option in reversed(list(_options(statuses))):
            decorated = option(decorated)
        return decorated

    return decorate


def _options(statuses: tuple[ExecutionStatus, ...]) -> Iterable[Callable[[Callable[..., Any]], Callable[..., Any]]]:
    yield click.option("--workflow", metavar="ID", help="Of this workflow only.")
    if statuses:
        choice = click.Choice([status.value for status in statuses])
        yield click.option("--status", type=choice, help="In this state only.")
    yield click.option(
        "--metadata", type=pair, multiple=True, metavar="KEY=VALUE", help="With this metadata.  [repeatable]"
    )
    yield click.option("--parent", metavar="ID", help="Children of this execution only.")
    when = "30m, 2h, 1d, or an ISO time."
    yield click.option("--since", type=moment, metavar="TIME", help=f"Created since then: {when}")
    yield click.option("--before", type=moment, metavar="TIME", help=f"Created before then: {when}")
