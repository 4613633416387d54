"""The stage: servers, crews and engine of one play, and the marks of what was done to them."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from chaos.crew import Crew
from chaos.feeder import acknowledged
from spanloom.engine import WorkflowEngine
from spanloom.testing.servers import PostgresServer, RedisServer

__all__ = ["Mark", "Stage"]


@dataclass(frozen=True)
class Mark:
    """One fault. Times are Unix seconds; `healed_at` is when nothing kept the system from going on any more."""

    fault: str
    at: float
    healed_at: float
    worker: str | None = None  # by name, if one worker alone met it


@dataclass
class Stage:
    """What faults may reach for."""

    folder: Path
    engine: WorkflowEngine
    redis: RedisServer
    postgres: PostgresServer | None
    workers: Crew
    engines: Crew
    slots: int  # of each worker
    lease_seconds: float
    marks: list[Mark] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def mark(self, fault: str, at: float, healed_at: float | None = None, worker: str | None = None) -> None:
        """Note a fault that began at `at` and is healed now, or was at `healed_at`."""
        self.marks.append(Mark(fault, at, time.time() if healed_at is None else healed_at, worker))

    def recent_execution(self, chance: random.Random) -> str | None:
        """Return one of the executions that were started last."""
        ids = [execution_id for _, execution_id in acknowledged(self.folder)]
        return chance.choice(sorted(ids)[-40:]) if ids else None
