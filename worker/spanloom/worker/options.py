"""The options of a worker: queues, slots, leases, grace."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["WorkerOptions"]


class WorkerOptions(BaseModel):
    """The options of one worker process. Durations are seconds.

    `queues` are served in strict order, each with its high, normal and low list; `concurrency` is how many nodes run at
    once; a claim lapses `lease_seconds` after the last heartbeat, of which there are three a lease; `sweep_seconds` is
    how often due work is looked for; after SIGTERM running nodes have `grace_seconds` to end. Work first runs at most
    `max_inline_nodes` nodes or `max_inline_seconds` in a row before the rest goes through the queue. `burst` ends
    the worker when nothing is left to do.

    A node that was lost with its worker `max_recovery_attempts` times fails with WorkerLost. One that a single loss
    more would fail runs alone in its worker, which waits for that, and lets it be alone, for up to
    `isolation_seconds`: neither can a node that kills its workers take another with it so often, nor the other way
    round.

    Lines of the standard `logging` that are written within handlers are kept with their nodes from `log_level` on, as
    far as the levels of their loggers let them be made; with `capture_output` so is what handlers print.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    queues: tuple[str, ...] = Field(default=("default",), min_length=1)
    concurrency: int = Field(default=4, ge=1, le=1000)
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]{1,100}$")
    lease_seconds: float = Field(default=15.0, ge=0.2, le=86_400)  # no thread can wait for any time
    sweep_seconds: float = Field(default=0.5, gt=0)
    lost_job_after_seconds: float = Field(default=2.0, gt=0)
    grace_seconds: float = Field(default=30.0, ge=0, le=86_400)
    max_inline_nodes: int = Field(default=100, ge=1)
    max_inline_seconds: float = Field(default=2.0, gt=0)
    max_recovery_attempts: int = Field(default=3, ge=1)
    isolation_seconds: float = Field(default=60.0, ge=0)
    burst: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    capture_output: bool = False
