"""The part of the store port that reads payloads by their size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

__all__ = ["Payloads"]


class Payloads(ABC):
    """The reads of nodes' data: first its size, which costs no memory, then the data itself."""

    @abstractmethod
    def get_data_size(self, execution_id: str, node_ids: Sequence[str], *, items: bool = False) -> int:
        """Return the bytes that the data of ended nodes takes together as JSON; with `items`, that of their items."""

    @abstractmethod
    def get_data(self, execution_id: str, node_ids: Sequence[str]) -> dict[str, str]:
        """Return the data of ended nodes as JSON text, by node id. Data that is missing is `null`."""
