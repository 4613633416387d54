"""The options of a worker: queues, slots, leases, grace."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field

from spanloom.engine.workflow.definitions import QUEUE_NAME

__all__ = ["WorkerOptions"]


class WorkerOptions(BaseModel):
    """The options of one worker process. Durations are seconds.

    The command line's options are made from these fields: `--lease` from `lease_seconds`, with its description.

    A node run that was lost with its worker `max_recovery_attempts` times fails with WorkerLost. A node run that would
    fail after one more loss runs alone in its worker. The worker waits up to `isolation_seconds` for its other nodes to
    end, and starts no other for up to `isolation_seconds`. So a node that kills its workers does not fail the nodes
    that ran beside it.

    Lines that handlers write with the standard `logging` are stored with their nodes from `log_level` on, as far as the
    levels of their loggers let them pass. With `capture_output`, printed lines are stored too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    queues: tuple[Annotated[str, Field(pattern=f"^{QUEUE_NAME}$")], ...] = Field(
        default=("default",),
        min_length=1,
        description="Which queues to serve, each with its high, normal and low list; an earlier one goes first.",
    )
    concurrency: int = Field(default=8, ge=1, le=1000, description="How many nodes run at once in each process.")
    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_.-]{1,100}$",
        description="What to call it.  [default: host, process and a random part]",
    )
    grace_seconds: float = Field(
        default=30.0,
        ge=0,
        le=86_400,
        description="How long running nodes have to end after SIGTERM or Ctrl-C.",
    )
    lease_seconds: float = Field(
        default=15.0,
        ge=0.2,
        le=86_400,  # no thread can wait for any time
        description="How long after its last heartbeat, of three a lease, a worker's nodes go to another one.",
    )
    stall_seconds: float = Field(
        default=60.0,
        ge=0,
        le=86_400,
        description="How long a process may stand still, or a handler go on after its timeout, before the process is "
        "replaced; two leases at least. 0: for ever.",
    )
    sweep_seconds: float = Field(
        default=0.5, gt=0, description="How often to look for what is due; an idle worker may do so half as often."
    )
    lost_job_after_seconds: float = Field(
        default=2.0, gt=0, description="How long after its list has gone past it a job counts as lost."
    )
    max_inline_nodes: int = Field(
        default=100, ge=1, description="How many nodes to run in a row before the rest goes through the queue."
    )
    max_inline_seconds: float = Field(
        default=2.0, gt=0, description="For how long to run nodes in a row before the rest goes through the queue."
    )
    max_recovery_attempts: int = Field(
        default=3, ge=1, description="How often a node may be lost with its worker before it fails."
    )
    isolation_seconds: float = Field(
        default=60.0,
        ge=0,
        description="How long the other nodes of a worker wait while one runs alone that one more loss would fail.",
    )
    max_nodes: int | None = Field(
        default=None,
        ge=1,
        description="How many nodes a process runs before another one takes its place; up to a tenth fewer, so that "
        "processes do not end together.  [default: any number]",
    )
    max_memory: ByteSize | None = Field(
        default=None,
        ge=1,
        description="How much memory of its own a process may have after a node before another one takes its place, "
        "such as 500MB or 1GiB.  [default: any]",
    )
    executor: Literal["thread", "process"] = Field(
        default="thread",
        description="Where handlers run that do not choose: in threads of the worker's process, or each in a process "
        "that its timeout can kill.",
    )
    tasks_per_process: int = Field(
        default=100, ge=1, description="How many nodes a handler process runs before another one takes its place."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe lines that are written, and kept with nodes."
    )
    capture_output: bool = Field(
        default=False, description="Keep what handlers print as log lines of their nodes, too."
    )
    burst: bool = Field(default=False, description="End when nothing is left to do.")

    @property
    def stalled_after(self) -> float:
        """The seconds after which a part that has not moved stands still; 0: none ever does."""
        return self.stall_seconds and max(self.stall_seconds, 2 * self.lease_seconds)
