"""The one node type that drawn workflows are made of: what it does follows from its config, item and attempt alone."""

from __future__ import annotations

import json
import threading
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from spanloom.engine import NodeContext, NodeRegistry, NodeResult, PermanentError

ROUND = "round"  #: the metadata that a whole family of executions shares
NODE_TYPE = "act"


class Act(NamedTuple):
    """What a run does in one attempt."""

    outcome: str  # completed, failed or skipped
    data: Any = None
    error: str | None = None  # the type that its error gets
    message: str | None = None
    permanent: bool = False
    route: tuple[str, ...] | None = None
    later: int = 0  # how often it asks for a retry first, at the cost of no attempt


def act(config: Mapping[str, Any], node_id: str, item: int, attempt: int, data: Any, healed: bool) -> Act:
    """Decide what an attempt comes to. A healed one does not fail, and names no node that is not there."""
    config = {**config, **config.get("items", {}).get(str(item), {})}
    later = config.get("later", 0) if attempt == 1 and not healed else 0
    if not healed and attempt <= config.get("fail_times", 0):
        message = f"boom {attempt}"
        how = config.get("how", "raised")
        if how == "raised":
            return Act("failed", error="ValueError", message=message, later=later)
        return Act(
            "failed", error="PermanentError" if how == "permanent" else "Returned", message=message, permanent=True,
            later=later,
        )  # fmt: skip
    if config.get("skip"):
        return Act("skipped", later=later)
    route = config.get("route")
    if healed and route is not None and (item or "ghost" in route):
        route = None
    said = {
        "by": f"{node_id}.{item}",
        "v": zlib.crc32(json.dumps(plain(data), sort_keys=True).encode()) % 1000,
        "ok": config.get("ok", True),
        "list": list(range(config.get("list", 0))),
    }
    return Act("completed", said, route=None if route is None else tuple(route), later=later)


def plain(data: Any) -> Any:
    """Return data without the messages of errors that nobody can foretell, such as those that name a child's id."""
    if isinstance(data, list):
        return [plain(one) for one in data]
    if not isinstance(data, dict):
        return data
    kept = {name: plain(value) for name, value in data.items()}
    if isinstance(message := kept.get("message"), str) and not message.startswith("boom"):
        kept["message"] = None
    return kept


class Board:
    """What the handlers of all workers share: which families are healed, and who was called how often."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._healed: set[str] = set()
        self._calls: dict[tuple[str, bool], Counter[tuple[str, int]]] = {}
        self._attempts: Counter[tuple[str, str, int, int, bool]] = Counter()

    def heal(self, family: str) -> None:
        """From now on nothing of this family fails."""
        self._healed.add(family)

    def is_healed(self, family: str) -> bool:
        """Tell whether it was healed."""
        return family in self._healed

    def note(self, ctx: NodeContext, healed: bool) -> int:
        """Count a call, and return how many of this attempt came before."""
        with self._lock:
            self._calls.setdefault((ctx.execution_id, healed), Counter())[ctx.node_id, ctx.item] += 1
            key = (ctx.execution_id, ctx.node_id, ctx.item, ctx.attempt, healed)
            self._attempts[key] += 1
            return self._attempts[key] - 1

    def calls(self, execution_id: str, healed: bool) -> Counter[tuple[str, int]]:
        """Return how often each run's handler was called, before or since the family was healed."""
        with self._lock:
            return Counter(self._calls.get((execution_id, healed), Counter()))


def make_registry(board: Board) -> NodeRegistry:
    """Return the handlers of drawn workflows."""
    registry = NodeRegistry()

    @registry.node(NODE_TYPE)
    def run(data: Any, ctx: NodeContext) -> Any:
        healed = board.is_healed(ctx.metadata[ROUND])
        before = board.note(ctx, healed)
        found = act(ctx.config, ctx.node_id, ctx.item, ctx.attempt, data, healed)
        if before < found.later:
            return NodeResult.retry_after(0)
        if found.outcome == "skipped":
            return NodeResult.skipped()
        if found.error == "Returned":
            return NodeResult.failed(found.message or "", type=found.error)
        if found.error is not None:
            raise (PermanentError if found.permanent else ValueError)(found.message)
        return found.data if found.route is None else NodeResult(data=found.data, next_nodes=found.route)

    return registry
