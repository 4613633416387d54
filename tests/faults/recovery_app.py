"""The workers of test_restart_during_recovery.py: a node of theirs never ends, until they are told to let it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from spanloom.engine import NodeRegistry, WorkflowEngine
from spanloom.worker import sweeper

__all__ = ["EXIT_CODE", "GO", "engine", "registry"]

GO = "RECOVERY_GO"  #: the variable that names a file: workers that start once it is there let the node end
EXIT_CODE = 99

_may_end = Path(os.environ.get(GO, "")).is_file()
registry = NodeRegistry()


@registry.node("hold")
async def hold(data: int) -> int:
    """Run for ever, or for three seconds."""
    await asyncio.sleep(3) if _may_end else await asyncio.Event().wait()
    return data


@registry.node("after")
async def after(data: int) -> int:
    """Add one."""
    return data + 1


if GO in os.environ:  # in a worker
    sweeper._RENEWAL_SECONDS = 10.0  # a busy machine renews late
signal.signal(signal.SIGUSR1, lambda *_: os._exit(EXIT_CODE))
engine = WorkflowEngine(registry, store=os.environ.get("SPANLOOM_STORE_URL", "memory://"))
