"""What Spanloom's worker processes serve; store and Redis come from their environment."""

from __future__ import annotations

from workflows import registry

from spanloom.engine import WorkflowEngine

__all__ = ["engine"]

engine = WorkflowEngine(registry)
