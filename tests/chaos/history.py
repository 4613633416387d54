"""The history: everything that the store and the handlers recorded of a scenario, read once it is over."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from chaos.environment import Environment
from chaos.trace_log import RunKey, TraceEntry, read
from spanloom.engine import Execution, ExecutionStore
from spanloom.engine.store.models import Event

__all__ = ["History", "read_history"]


@dataclass(frozen=True)
class History:
    """Executions by id, children too; events by execution, in commit order; trace entries by node run."""

    executions: dict[str, Execution]
    events: dict[str, list[Event]]
    entries: list[TraceEntry]

    def events_by_run(self) -> dict[RunKey, list[Event]]:
        """Return the events of each node run."""
        found: dict[RunKey, list[Event]] = defaultdict(list)
        for events in self.events.values():
            for event in events:
                if event.node_id is not None:
                    found[event.execution_id, event.node_id, event.item].append(event)
        return found


def read_history(environment: Environment) -> History:
    """Read all of it."""
    store = environment.engine.store
    executions = _executions(store)
    events = {execution_id: store.get_events(execution_id, limit=1000) for execution_id in executions}
    return History(executions, events, read(environment.folder / "trace-log"))


def _executions(store: ExecutionStore) -> dict[str, Execution]:
    found: dict[str, Execution] = {}
    cursor: str | None = None
    while True:
        page = store.list_executions(limit=500, cursor=cursor)
        for execution in page.items:
            whole = store.get_execution(execution.id)  # a list has no outputs
            assert whole is not None
            found[execution.id] = whole
        cursor = page.next_cursor
        if cursor is None:
            return found
