"""The trace log: one line for every run of a handler, written by the handler and not by the system under test."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanloom.engine import NodeContext

__all__ = ["TraceEntry", "TraceLog", "append", "read"]

RunKey = tuple[str, str, int]


@dataclass(frozen=True)
class TraceEntry:
    """One run of a handler: which, when, where, its mark, and the marks of the results that it was given."""

    execution_id: str
    node_id: str
    item: int
    attempt: int
    pid: int
    at: float  # Unix seconds
    mark: str  # of this run alone; its result carries it
    saw: dict[str, str]  # where a result came from -> the mark that it carries

    @property
    def key(self) -> RunKey:
        """The node run."""
        return self.execution_id, self.node_id, self.item


class TraceLog:
    """Write entries. Each is one write to a file opened for appending, so that none is torn or mixed up."""

    def __init__(self, path: str | Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, ctx: NodeContext, saw: dict[str, str]) -> str:
        """Note that a handler runs, and return the mark of this run."""
        mark = secrets.token_hex(6)
        entry = [ctx.execution_id, ctx.node_id, ctx.item, ctx.attempt, os.getpid(), time.time(), mark, saw]
        os.write(self._file, json.dumps(entry).encode() + b"\n")
        return mark


def read(path: Path) -> list[TraceEntry]:
    """Return all entries in the order of their writing."""
    return [TraceEntry(*json.loads(line)) for line in _lines(path)]


def append(path: Path, *fields: Any) -> None:
    """Append one JSON line with a single write."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, json.dumps(fields).encode() + b"\n")
    finally:
        os.close(file)


def _lines(path: Path) -> Iterable[bytes]:
    return path.read_bytes().splitlines() if path.exists() else ()
