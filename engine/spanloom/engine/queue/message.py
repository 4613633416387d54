"""The message of a node job: its fields, its form in Redis, and their bounds."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from spanloom.engine.queue.redis_refusals import bounded_text
from spanloom.engine.store.requests import NodeJob, NodeKey

__all__ = ["JOB_FORMAT", "JOB_FUNCTION", "MOST_ID_BYTES", "MOST_JOB_BYTES", "NodeMessage"]

JOB_FORMAT = 1
JOB_FUNCTION = "spanloom.worker.job.run_node_job"  #: wire format: shown by RQ's tools, never imported by a worker
MOST_ID_BYTES = 500  #: of a job's id; ours have about 280 at most
MOST_JOB_BYTES = 64 * 1024  #: of a job's data; it holds ids and the name of a node type
_MOST_TYPE = 10_000  # characters of a node type
_LATEST = 253402300800.0  # the year 10000, in Unix seconds: the bound of datetime
_MOST_SHOWN = 200  # characters of a node type that RQ's tools show
_ID = re.compile(r"[A-Za-z0-9_$-]{1,200}").fullmatch
_JOB_ID = re.compile(r"[A-Za-z0-9_$.:-]+").fullmatch


@dataclass(frozen=True, slots=True)
class NodeMessage:
    """The content of a node job: execution, node, item, node type, push number, and the time of its push."""

    job_id: str
    execution_id: str
    node_id: str
    item: int
    node_type: str
    push: int
    pushed_at: float  # the store's clock, Unix seconds
    list_name: str  # the RQ queue it was on
    recovery_attempts: int = 0  # how often the run was lost with its worker, when it was pushed

    @property
    def key(self) -> NodeKey:
        """The key of the node run to run."""
        return NodeKey(self.execution_id, self.node_id, self.item)

    @property
    def description(self) -> str:
        """The job's description in RQ's tools."""
        return f"{self.node_type[:_MOST_SHOWN]} for node {self.node_id} of execution {self.execution_id}"

    def as_dict(self) -> dict[str, Any]:
        """Return the argument of the RQ job, as it is stored in Redis."""
        lost = {"recovery_attempts": self.recovery_attempts} if self.recovery_attempts else {}
        return {
            "format": JOB_FORMAT,
            "execution": self.execution_id,
            "node": self.node_id,
            "item": self.item,
            "type": self.node_type,
            "push": self.push,
            "at": self.pushed_at,
            **lost,
        }

    @classmethod
    def of(cls, job: NodeJob, list_name: str) -> NodeMessage:
        """Return the message of a push."""
        return cls(
            job_id=f"{job.execution_id}-{job.node_id}-{job.item}-{job.push}",
            execution_id=job.execution_id,
            node_id=job.node_id,
            item=job.item,
            node_type=job.node_type,
            push=job.push,
            pushed_at=job.pushed_at.timestamp(),
            list_name=list_name,
            recovery_attempts=job.recovery_attempts,
        )

    @classmethod
    def parse(cls, job_id: str, data: bytes, list_name: str) -> NodeMessage:
        """Read an RQ job's data. Raises ValueError, with the reason, for data that is no node job of our format."""
        if len(data) > MOST_JOB_BYTES:
            raise ValueError(f"its data has {len(data):,} bytes, which no node job has")
        try:
            function, instance, args, kwargs = json.loads(data)
            (message,) = args
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"its data is not a JSON call with one argument ({bounded_text(str(error))})") from error
        if function != JOB_FUNCTION or instance is not None or kwargs or not isinstance(message, dict):
            raise ValueError(f"it calls {bounded_text(repr(function))}; this worker runs node jobs only")
        if message.get("format") != JOB_FORMAT:
            shown = bounded_text(repr(message.get("format")))
            raise ValueError(f"its format is {shown}, this worker knows {JOB_FORMAT}")
        try:
            made = cls(
                job_id=job_id,
                execution_id=str(message["execution"]),
                node_id=str(message["node"]),
                item=int(message["item"]),
                node_type=str(message["type"]),
                push=int(message["push"]),
                pushed_at=float(message["at"]),
                list_name=list_name,
                recovery_attempts=int(message.get("recovery_attempts", 0)),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"its message lacks or mistypes a field ({bounded_text(repr(error))})") from error
        numbers = (made.item, made.push, made.recovery_attempts)
        if not (all(0 <= number < 2**31 for number in numbers) and 0 <= made.pushed_at < _LATEST):
            raise ValueError("a number in its message is out of range")
        if not (made.node_type.isprintable() and 0 < len(made.node_type) <= _MOST_TYPE):
            raise ValueError("its node type is empty, longer than any, or has odd characters")
        if not _JOB_ID(job_id):
            raise ValueError("its own id has odd characters")
        if not (_ID(made.execution_id) and _ID(made.node_id)):
            raise ValueError("an id in its message has odd characters")
        return made
