"""The environment: servers, process groups and engine of one scenario, and the faults that were injected."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from chaos.load import acknowledged
from chaos.processes import ProcessGroup
from spanloom.engine import WorkflowEngine
from spanloom.testing.servers import PostgresServer, RedisServer

__all__ = ["Environment", "Injection"]


@dataclass(frozen=True)
class Injection:
    """One fault that was injected. Times are Unix seconds; `healed_at` is when nothing was in its way any more."""

    fault: str
    at: float
    healed_at: float
    worker: str | None = None  # by name, if one worker alone met it


@dataclass
class Environment:
    """What faults may reach for."""

    folder: Path
    engine: WorkflowEngine
    redis: RedisServer
    postgres: PostgresServer | None
    workers: ProcessGroup
    engines: ProcessGroup
    claims: int  # of each worker, at most
    lease_seconds: float
    variables: dict[str, str]  # of the environment of every process
    injections: list[Injection] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def record(self, fault: str, at: float, healed_at: float | None = None, worker: str | None = None) -> None:
        """Record a fault that began at `at` and is healed now, or was at `healed_at`."""
        self.injections.append(Injection(fault, at, time.time() if healed_at is None else healed_at, worker))

    def recent_execution(self, chance: random.Random) -> str | None:
        """Return one of the executions that were started last."""
        ids = [execution_id for _, execution_id in acknowledged(self.folder)]
        return chance.choice(sorted(ids)[-40:]) if ids else None
