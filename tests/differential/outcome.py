"""How an execution and its node runs came out: as the reference tells it, or as it was seen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

ENDED = ("completed", "failed", "skipped")


@dataclass
class Run:
    """One node run: as it must end, or as it was seen."""

    status: str = "absent"
    data: Any = None
    error: str | None = None  # its type
    attempt: int = 1
    calls: int = 0  # of the handler, in this round
    handled: bool = False
    taken: frozenset[str] = frozenset()
    items: dict[int, Run] = field(default_factory=dict)
    children: list[Story] = field(default_factory=list)
    older: int = 0  # how many children it had before these

    def kept(self) -> Run:
        """Return it as it stays when another round passes it by."""
        items = {number: item.kept() for number, item in self.items.items()}
        return replace(self, calls=0, items=items, children=[child.kept() for child in self.children])


@dataclass
class Story:
    """One execution: as it must end if nothing that another branch's failure does stops it, or as it was seen."""

    status: str
    output: Any = None
    runs: dict[str, Run] = field(default_factory=dict)
    error: tuple[str, str] | None = None  # node and type, of one that was seen
    id: str = ""  # of one that was seen

    def kept(self) -> Story:
        """Return it as it stays when another round passes it by."""
        return replace(self, runs={name: run.kept() for name, run in self.runs.items()})
