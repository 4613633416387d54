"""The errors that Spanloom raises; each message is a sentence with the ids and the remedy.

SpanloomError
├── UserError                    the request can't be carried out as it was made
│   ├── ConfigurationError       a URL, an option, a client or an environment variable is wrong
│   │   └── InvalidArgument      an argument of a call is of a wrong type or value; .argument, .given, .expected
│   ├── WorkflowInvalid          a definition has problems; .problems lists every one
│   ├── UnknownWorkflow          no such workflow or version, or it is deactivated
│   ├── UnknownNodeType          no handler is registered under that node type
│   ├── UnknownExecution         no such execution
│   ├── InvalidTransition        the state table forbids it
│   ├── StaleVersion             another writer was first; .expected, .actual, .current
│   ├── IdempotencyConflict      the key was used before with other input
│   └── PayloadRejected          data that JSON can't carry, or that is too large
├── ExecutionFailed              the execution ended as failed or cancelled; .execution
├── WaitTimeout                  it has not ended yet; it goes on
├── NodeFailure                  a node failed by a rule of Spanloom; handlers may raise these, too
│   ├── PermanentError           fail the node now, without a retry
│   │   ├── WaitRefused          its handler waits for an execution that no worker is left for
│   │   ├── RoutingFailed        it named a successor it does not have, or a `when` can't be evaluated
│   │   ├── DepthExceeded        its child would be nested too deep
│   │   ├── ItemsFailed          more of the items it was mapped over failed than it tolerates
│   │   └── WorkerLost           it was lost with its worker too often
│   ├── ChildFailed              the execution that it started failed, or was cancelled
│   ├── HandlerDied              the process that ran its handler has died
│   └── NodeTimeout              the handler ran past its node's timeout
├── ExpressionFailed             a JMESPath expression is wrong, or can't be evaluated on this data
├── LeaseLost                    this worker no longer holds the claim
├── WorkerStalled                a part of a worker stood still, and it gave up
├── StoreUnavailable             the store can't serve a call now; .reason; the write may or may not have happened
├── StoreRefused                 the database will never keep this; nothing was written
├── StoreNotMigrated             the store's schema is missing or of another version
└── QueueUnavailable             Redis did not answer, or refused a command
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from spanloom.engine.escaping import shown
from spanloom.engine.limits import MAX_NAME, MAX_NOTES, MAX_PROBLEMS_SHOWN, shortened

__all__ = [
    "ChildFailed",
    "ConfigurationError",
    "DepthExceeded",
    "ExecutionFailed",
    "ExpressionFailed",
    "HandlerDied",
    "IdempotencyConflict",
    "InvalidArgument",
    "InvalidTransition",
    "ItemsFailed",
    "LeaseLost",
    "NodeFailure",
    "NodeTimeout",
    "PayloadRejected",
    "PermanentError",
    "QueueUnavailable",
    "RoutingFailed",
    "SpanloomError",
    "StaleVersion",
    "StoreNotMigrated",
    "StoreRefused",
    "StoreUnavailable",
    "Unavailability",
    "UnknownExecution",
    "UnknownNodeType",
    "UnknownWorkflow",
    "UserError",
    "WaitRefused",
    "WaitTimeout",
    "WorkerLost",
    "WorkerStalled",
    "WorkflowInvalid",
]


class SpanloomError(Exception):
    """The base of all errors that Spanloom raises on purpose."""


class Unavailability(StrEnum):
    """The reasons why a store can't serve a call now."""

    AWAY = "away"  #: no answer: nothing else is served over that connection either
    TIME_LIMIT = "time limit"  #: of the server's, or of our own for one call
    LOCKED = "locked"  #: another transaction or process holds it
    READ_ONLY = "read-only"
    RIGHTS = "rights"  #: of the user in the database, or of the server to its files
    RESOURCES = "resources"  #: disk space, memory, connections
    STORAGE = "storage"  #: the disk fails, or data on it is damaged
    SCHEMA = "schema"  #: tables or functions are missing, as while a backup is restored
    OTHER = "other"


class UserError(SpanloomError):
    """Raised when a request can't be carried out as it was made."""


class ConfigurationError(UserError):
    """Raised when a URL, an option, a client or an environment variable is wrong; the message contains the remedy."""


class InvalidArgument(ConfigurationError):
    """Raised when an argument of a call is of a wrong type or value, before anything was done.

    `argument` is its name, or the place within it such as `node_ids[3]`; `given` the value, of which the message shows
    a bounded part; `expected` the description of those that are taken.
    """

    def __init__(self, argument: str, given: object, expected: str) -> None:
        self.argument = argument
        self.given = given
        self.expected = expected
        super().__init__(f"{argument} must be {expected}, not {shown(given)}")


class WorkflowInvalid(UserError):
    """Raised when a definition is wrong; `problems` holds one sentence per problem, each with the id of its node."""

    def __init__(self, workflow_id: str, problems: Sequence[str]) -> None:
        self.workflow_id = workflow_id
        self.problems = tuple(problems)
        shown = [shortened(problem, MAX_NOTES) for problem in self.problems[:MAX_PROBLEMS_SHOWN]]
        if len(self.problems) > len(shown):
            shown.append(f"and {len(self.problems) - len(shown):,} more problems")
        listed = shown[0] if len(shown) == 1 else "".join(f"\n  - {problem}" for problem in shown)
        super().__init__(f"workflow {shortened(workflow_id, MAX_NAME)!r} is not valid: {listed}")


class UnknownWorkflow(UserError):
    """Raised when a workflow that is to be started or read does not exist, or is not active."""

    def __init__(self, workflow_id: str, version: int | None = None, *, inactive: bool = False) -> None:
        self.workflow_id = workflow_id
        self.version = version
        self.inactive = inactive
        if inactive:
            sentence = (
                f"workflow {workflow_id!r} is deactivated; activate_workflow({workflow_id!r}) allows new executions"
            )
        elif version is None:
            sentence = f"no workflow {workflow_id!r} is registered; call register_workflow first"
        else:
            sentence = f"workflow {workflow_id!r} has no version {version}; list_workflow_versions shows those it has"
        super().__init__(sentence)


class UnknownNodeType(UserError):
    """Raised when a node type has no handler; `known` holds the registered ones."""

    def __init__(self, node_type: str, known: Sequence[str] = ()) -> None:
        self.node_type = node_type
        self.known = tuple(known)
        have = ", ".join(sorted(self.known)) or "none"
        super().__init__(f"no handler is registered for node type {node_type!r} (registered: {have})")


class UnknownExecution(UserError):
    """Raised when the store has no execution with this id."""

    def __init__(self, execution_id: str) -> None:
        self.execution_id = execution_id
        super().__init__(
            f"no execution {execution_id!r} in this store; it may have been purged, or the store is another one"
        )


class InvalidTransition(UserError):
    """Raised when a change of state is not in the table in states.py."""

    def __init__(self, what: str, current: str, wanted: str) -> None:
        self.current = current
        self.wanted = wanted
        super().__init__(f"{what} is {current} and can't become {wanted}")


class StaleVersion(UserError):
    """Raised when a write is based on an older state; `current` is the state in the store."""

    def __init__(self, what: str, expected: int, actual: int, current: Any = None) -> None:
        self.expected = expected
        self.actual = actual
        self.current = current
        super().__init__(f"{what} is at {actual}, not at the expected {expected}: read it again and decide anew")


class IdempotencyConflict(UserError):
    """Raised when an idempotency key has started an execution with other input."""

    def __init__(self, workflow_id: str, key: str, execution_id: str) -> None:
        self.workflow_id = workflow_id
        self.key = key
        self.execution_id = execution_id
        super().__init__(
            f"idempotency key {key!r} of workflow {workflow_id!r} belongs to execution {execution_id}, "
            f"which was started with other input; use another key"
        )


class PayloadRejected(UserError):
    """Raised when data can't be encoded as JSON, or is larger than the limit."""


class ExecutionFailed(SpanloomError):
    """Raised when an execution ended as failed or cancelled; `execution` holds its error."""

    def __init__(self, execution: Any) -> None:
        self.execution = execution
        error = execution.error or {}
        because = f": {error.get('type', 'Error')}: {error.get('message', '')}" if error else ""
        at = f" at node {error['node_id']!r}" if error.get("node_id") else ""
        super().__init__(f"execution {execution.id} of {execution.workflow_id!r} {execution.status}{at}{because}")


class WaitTimeout(SpanloomError):
    """Raised when an execution has not ended in the given time; it goes on."""

    def __init__(self, execution_id: str, seconds: float, status: str) -> None:
        self.execution_id = execution_id
        self.seconds = seconds
        self.status = status
        hint = "; is a worker running?" if status == "running" else ""
        super().__init__(f"execution {execution_id} is still {status} after {seconds:g} s{hint}")


class NodeFailure(SpanloomError):
    """The base of the errors by which a node fails in a defined way; handlers may raise them."""


class PermanentError(NodeFailure):
    """Raised when a node is to fail at once, regardless of its retry policy."""


class WaitRefused(PermanentError):
    """Raised when a handler waits for an execution, and no worker is left that could run it."""

    def __init__(self, node_id: str, execution_id: str) -> None:
        self.node_id = node_id
        self.execution_id = execution_id
        super().__init__(
            f"node {node_id!r} waits for execution {execution_id} in its handler, and so does every slot of the only "
            f"live worker: no slot is left to run it; start it with a node of type 'workflow' (child() of a builder), "
            f"which holds no slot while it waits"
        )


class RoutingFailed(PermanentError):
    """Raised when a node chose a successor that it does not have, or a `when` of its edges can't be evaluated."""


class DepthExceeded(PermanentError):
    """Raised when a child would be nested deeper than `limit` executions."""

    def __init__(self, workflow_id: str, limit: int) -> None:
        self.workflow_id = workflow_id
        self.limit = limit
        super().__init__(
            f"a child of workflow {workflow_id!r} would be execution {limit + 1} in a line of at most {limit}; "
            f"does it start itself? (SPANLOOM_MAX_DEPTH)"
        )


class ItemsFailed(PermanentError):
    """Raised when more items of a mapped node failed than it tolerates; it contains the first failure."""

    def __init__(self, node_id: str, failed: int, items: int, tolerated_failures: int, first: str) -> None:
        self.node_id = node_id
        self.failed = failed
        self.items = items
        super().__init__(
            f"{failed:,} of the {items:,} items of node {node_id!r} failed, "
            f"it tolerates {tolerated_failures:,}; first {first}"
        )


class WorkerLost(PermanentError):
    """Raised when a node was lost together with its worker too often: it may be the cause."""

    def __init__(self, node_id: str, recovery_attempts: int) -> None:
        self.node_id = node_id
        self.recovery_attempts = recovery_attempts
        super().__init__(f"node {node_id!r} was lost with its worker {recovery_attempts} times")


class ChildFailed(NodeFailure):
    """Raised when the execution that a node started has ended and did not complete."""

    def __init__(self, execution_id: str, workflow_id: str, status: str, because: str = "") -> None:
        self.execution_id = execution_id
        self.workflow_id = workflow_id
        self.status = status
        ended = "was cancelled" if status == "cancelled" else "failed"
        super().__init__(f"child execution {execution_id} of workflow {workflow_id!r} {ended}{because}")


class HandlerDied(NodeFailure):
    """Raised when the process that ran a handler has died, by a signal (`code` is negative) or with an exit code.

    It is also raised, with the reason, when the worker had to kill the process, or the process could not start.
    """

    def __init__(self, code: int, reason: str | None = None) -> None:
        self.code = code
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        super().__init__(reason or f"the process that ran the handler has died, {how}")


class NodeTimeout(NodeFailure):
    """Raised when a handler ran for longer than its node's `timeout`, in seconds."""

    def __init__(self, node_id: str = "?", seconds: float = 0.0) -> None:
        self.node_id = node_id
        self.seconds = seconds
        super().__init__(f"node {node_id!r} ran for longer than its timeout of {seconds:g} s")


class ExpressionFailed(SpanloomError):
    """Raised when a JMESPath expression can't be compiled or evaluated; never shows the data."""


class LeaseLost(SpanloomError):
    """Raised when a claim is gone with its worker's lease or a cancelled execution; nothing is recorded."""

    def __init__(self, execution_id: str, node_id: str, fence: int) -> None:
        self.execution_id = execution_id
        self.node_id = node_id
        self.fence = fence
        super().__init__(
            f"the claim {fence} on node {node_id!r} of execution {execution_id} was lost; nothing was recorded"
        )


class WorkerStalled(SpanloomError):
    """Raised when a worker gave up because a part of it, or a handler past its timeout, stood still."""

    def __init__(self, worker: str, reason: str) -> None:
        self.worker = worker
        self.reason = reason
        super().__init__(f"worker {worker} gave up: {reason}")


class StoreUnavailable(SpanloomError):
    """Raised when the store can't serve a call now; the call may be repeated.

    `reason` is the kind of the cause, in the words of Unavailability.
    """

    def __init__(self, message: str, *, reason: Unavailability | None = None) -> None:
        self.reason = reason or Unavailability.AWAY
        super().__init__(message)


class StoreRefused(SpanloomError):
    """Raised when the database refuses a statement (a trigger, a constraint); a retry would not help."""


class StoreNotMigrated(SpanloomError):
    """Raised when the store's schema is missing or of another version; its message contains the remedy."""

    def __init__(self, where: str, found: str | None, wanted: str, *, exists: bool = True) -> None:
        self.found = found
        self.wanted = wanted
        have = f"is at schema version {found}" if found else "has no Spanloom schema" if exists else "does not exist"
        if found is not None and found > wanted:
            remedy = "the schema is newer than this release; upgrade spanloom"
        else:
            remedy = f"run: spanloom migrate --store {shlex.quote(where)}"
        super().__init__(f"the store {where} {have}, this release needs {wanted}; {remedy}")


class QueueUnavailable(SpanloomError):
    """Raised when Redis did not answer, or refused a command. The sweep will push the jobs when Redis is back.

    `known`: Redis counted as unavailable already.
    """

    def __init__(self, message: str, *, known: bool = False) -> None:
        self.known = known
        super().__init__(message)
