"""Shortages of this process, such as of descriptors or memory, before it could call a handler."""

from __future__ import annotations

import os
import time

from spanloom.engine.store.requests import Claim, NodeKey
from spanloom.worker.node.outcomes import is_own_failure

__all__ = ["Shortages"]

_MANY = 1_000
_PAUSES = (0.2, 2.0)


class Shortages:
    """The runs that were given back because this process lacked something, and the pause that it makes for that.

    Another worker may be able to run it. After `seconds` of attempts here it fails, as its retry policy has it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[NodeKey, float] = {}
        self._until = 0.0
        self._next = _PAUSES[0]

    @property
    def pause(self) -> float:
        """Seconds for which nothing more should be claimed."""
        return max(0.0, self._until - time.monotonic()) if self._until else 0.0

    def gives_back(self, error: BaseException, claim: Claim, *, entered: bool = False) -> bool:
        """Return whether a run that ended with `error` is to be given back: not once its handler was `entered`.

        In any case nothing more is claimed for a moment if this process is short of something.
        """
        if not is_own_failure(error) or (entered and self.problem() is None):
            return False
        now = time.monotonic()
        in_time = self.puts_off(claim)
        self._next = _PAUSES[0] if now > self._until + _PAUSES[1] else min(2 * self._next, _PAUSES[1])
        self._until = now + self._next
        return in_time and not entered

    def puts_off(self, claim: Claim) -> bool:
        """Return whether a run may be given back, through no fault of its own, in the time that it has for that."""
        if len(self._since) > _MANY:
            self._since.clear()
        now = time.monotonic()
        first = self._since.setdefault(NodeKey(claim.header.execution_id, claim.node.node_id, claim.node.item), now)
        return now - first < self._seconds

    @staticmethod
    def problem() -> str | None:
        """Return the shortage of this moment; None if files can be opened."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            return f"no file can be opened ({error.strerror})" if is_own_failure(error) else None
        return None
