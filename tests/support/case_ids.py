"""Ids of test cases that are the same in every process: xdist compares them."""

from __future__ import annotations

import re

import pytest

__all__ = ["case_id", "refuse_addresses"]

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def case_id(value: object) -> str:
    """Return the text of a value without the addresses of objects."""
    return _ADDRESS.sub("", str(value))


def refuse_addresses(items: list[pytest.Item]) -> None:
    """Raise UsageError for a case whose id holds an address."""
    for item in items:
        if _ADDRESS.search(item.nodeid):
            raise pytest.UsageError(f"{item.nodeid} differs between processes; give it ids=case_id")
