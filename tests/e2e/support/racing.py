"""A process that registers and starts workflows at a given instant: `python racing.py`, for test_races.py.

Reads one JSON line for each race: what to do, and when by the machine's clock; answers each with one line, which also
says whether it was told too late.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from spanloom.engine import NodeRegistry, Workflow, WorkflowEngine

SPIN_SECONDS = 0.01  #: of the wait, at its end: two that spin for all of it keep a machine of two cores busy

registry = NodeRegistry()


@registry.node("work")
def work() -> None:
    """Never called: there is no worker."""


def main() -> None:
    """Race until the end of the input."""
    with WorkflowEngine(registry, os.environ["SPANLOOM_STORE_URL"], os.environ["SPANLOOM_REDIS_URL"]) as engine:
        _say("ready")
        for line in sys.stdin:
            asked: dict[str, Any] = json.loads(line)
            workflow = Workflow.model_validate(asked["workflow"]) if "workflow" in asked else None
            time.sleep(max(0.0, asked["at"] - time.time() - SPIN_SECONDS))
            late = time.time() >= asked["at"]
            while time.time() < asked["at"]:  # spins: a sleep would not end in both at the same instant
                pass
            if workflow is not None:
                answer: Any = engine.register_workflow(workflow)
            else:
                answer = engine.enqueue_workflow(asked["start"], asked["data"], idempotency_key=asked["key"])
            _say(answer, late=late)


def _say(answer: Any, *, late: bool = False) -> None:
    print(json.dumps({"answer": answer, "late": late}), flush=True)


if __name__ == "__main__":
    main()
