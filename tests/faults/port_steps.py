"""Which methods of the store port are whose steps, derived from the port's parts.

A method that is new is wanted of the process that its part is for, or of the operator: the tests of crashes fail until
one of them calls it.
"""

from __future__ import annotations

import inspect

from spanloom.engine.store.port import (
    ExecutionStore,
    Lifecycle,
    Recovery,
    Retention,
    Telemetry,
    WorkerLeases,
    WorkflowVersions,
)
from spanloom.engine.store.transitions import Control, NodeTransitions

__all__ = ["NOT_PASSED", "OPERATED", "PASSED", "methods", "writes"]

_READS = ("get_", "list_")
_OTHER_READS = {"health", "next_due", "stats"}
#: Control that the engine of a play does; all other is an operator's.
_CONTROLLED = {"cancel_execution", "pause_execution", "resume_execution", "retry_execution"}


def methods(part: type) -> set[str]:
    """Return the abstract methods of a part of the port."""
    names: frozenset[str] = getattr(part, "__abstractmethods__")  # noqa: B009  a type checker knows it of no type
    return {name for name in names if not isinstance(inspect.getattr_static(part, name), property)}


def writes(*parts: type) -> set[str]:
    """Return those methods of these parts that make something durable, or lead there."""
    every = set().union(*map(methods, parts))
    return {name for name in every if not name.startswith(_READS)} - _OTHER_READS


#: What only operators call.
OPERATED = writes(Control, Retention, Telemetry, WorkflowVersions) - _CONTROLLED - {"add_logs", "save_workflow"}
#: What no process of a play calls, by the reason why it need not.
NOT_PASSED = {
    "it reads": methods(ExecutionStore) - writes(ExecutionStore),
    "only an operator calls it, as in test_operator_crashes.py": OPERATED,
    "it is done before any process starts": {"migrate"},
    "only a push that failed calls it, as in test_redis_that_refuses.py": {"forget_pushes"},
    "it is for callers of the store alone": writes(Lifecycle) - {"open", "close", "migrate"},
}
#: The roles by which a play must come to each durable step; without them the other tests would prove nothing.
PASSED = {
    "engine": writes(NodeTransitions) - {"claim", "record"} | _CONTROLLED | {"save_workflow"},
    "worker": writes(NodeTransitions, WorkerLeases) - {"create_executions", "renew_lease"} | {"get_workflow"},
    "lease": {"renew_lease"},
    "sweep": writes(Recovery) - {"raise_epoch", "forget_pushes"},
}
