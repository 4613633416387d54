"""The RQ entry: the function that every node job names. Our worker compares the name and never imports it."""

from __future__ import annotations

from typing import Any

__all__ = ["run_node_job"]


def run_node_job(message: dict[str, Any]) -> None:
    """Refuse to run: only a Spanloom worker, which claims the node run first, may run it.

    A stock RQ worker that calls this loses nothing: the node run stays queued in the store, and the sweep of a
    Spanloom worker pushes it again.
    """
    raise RuntimeError(
        f"node {message.get('node')!r} of execution {message.get('execution')} needs `spanloom worker module:engine`, "
        f"a stock RQ worker can't run it; it will be pushed again"
    )
