"""What the handlers of the crash tests do to the world outside, in files: calls that add up, and effects with a key."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from spanloom.engine import NodeContext


class Effect(NamedTuple):
    """One call of a handler, as the world saw it."""

    execution_id: str
    node_id: str
    item: int
    attempt: int
    pid: int


class World:
    """A folder that handlers of all processes act on. Gates in it stay open once they are."""

    def __init__(self, folder: Path) -> None:
        self._calls = folder / "calls"
        self._keyed = folder / "keyed"
        self._gates = folder / "gates"
        self._keyed.mkdir(parents=True, exist_ok=True)
        self._gates.mkdir(exist_ok=True)

    def act(self, ctx: NodeContext, key: str) -> None:
        """Act each time it is called, and once for each key, as a good service would."""
        effect = Effect(ctx.execution_id, ctx.node_id, ctx.item, ctx.attempt, os.getpid())
        line = f"{json.dumps(effect)}\n".encode()
        descriptor = os.open(self._calls, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
        with tempfile.NamedTemporaryFile(dir=self._keyed.parent) as file:
            file.write(line)
            file.flush()
            try:
                os.link(file.name, self._keyed / key)  # whole, or not at all, and never twice
            except FileExistsError:
                return

    def calls(self) -> list[Effect]:
        """Return every call, in order."""
        if not self._calls.exists():
            return []
        whole = self._calls.read_text().rpartition("\n")[0]
        return [Effect(*json.loads(line)) for line in whole.splitlines()]

    def keyed(self) -> Counter[tuple[str, str, int]]:
        """Count the effects that had a key, by node run."""
        return Counter(Effect(*json.loads(path.read_text()))[:3] for path in self._keyed.iterdir())

    def open_gate(self, name: str) -> None:
        """Let those pass who wait, and whoever comes later."""
        (self._gates / name).touch()

    def is_open(self, name: str) -> bool:
        """Tell whether a gate was opened."""
        return (self._gates / name).exists()

    def wait_at(self, name: str, timeout: float = 60.0) -> None:
        """Wait until a gate is open: another process opens it, and a file can only be looked at."""
        pause = threading.Event()
        for _ in range(int(timeout / 0.02)):
            if self.is_open(name):
                return
            pause.wait(0.02)
        raise TimeoutError(f"nobody opened gate {name}")
