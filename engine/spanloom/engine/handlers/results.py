"""The results that a handler may return instead of plain data: chosen successors, a failure, a skip, a retry."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from spanloom.engine.store.requests import Outcome
from spanloom.engine.workflow.definitions import Seconds

__all__ = ["NodeResult"]


class NodeResult(BaseModel):
    """The end of a node, as its handler returns it.

    `NodeResult(data=…, next_nodes=…)` completes the node: of its success edges only those to `next_nodes` are taken
    (None: all, empty: none). The class methods make the other ends.

    >>> NodeResult(data={"total": 17}, next_nodes=["approve"]).next_nodes
    ('approve',)
    >>> NodeResult.failed("the card was declined", type="CardDeclined").error_type
    'CardDeclined'
    >>> NodeResult.retry_after(30).delay_seconds
    30.0
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Any = None
    next_nodes: tuple[str, ...] | None = None
    outcome: Outcome = Outcome.COMPLETED  # or FAILED, SKIPPED, RETRY
    error_type: str | None = None  # of FAILED
    error_message: str | None = None
    delay_seconds: Seconds = 0.0  # of RETRY

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            data: Any = None,
            next_nodes: Sequence[str] | None = None,
            outcome: Outcome = Outcome.COMPLETED,
            error_type: str | None = None,
            error_message: str | None = None,
            delay_seconds: float | timedelta = 0.0,
        ) -> None: ...

    @model_validator(mode="after")
    def _one_meaning(self) -> Self:
        if self.outcome in (Outcome.WAITING, Outcome.RELEASED):
            raise ValueError(f"a handler can't end its node as {self.outcome}")
        if self.next_nodes is not None and self.outcome is not Outcome.COMPLETED:
            raise ValueError(f"next_nodes belongs to a completed node, not to one that ends as {self.outcome}")
        if self.outcome is Outcome.FAILED and not self.error_type:
            raise ValueError("a failure needs a type and a message; use NodeResult.failed")
        return self

    @classmethod
    def failed(cls, message: str, type: str = "NodeFailure") -> Self:
        """Fail the node for good, without a retry; `type` is stored in its error in place of an exception's class."""
        return cls(outcome=Outcome.FAILED, error_type=type, error_message=message)

    @classmethod
    def skipped(cls) -> Self:
        """End the node as skipped: no edge is taken, and successors without another parent are skipped as well."""
        return cls(outcome=Outcome.SKIPPED)

    @classmethod
    def retry_after(cls, delay: float | timedelta) -> Self:
        """Run the node again after `delay`, without using up an attempt: for a service that is busy (HTTP 429)."""
        return cls(outcome=Outcome.RETRY, delay_seconds=delay)
