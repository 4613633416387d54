"""The end of a test process that can't be timed out: its stacks are written, and it exits.

pytest-timeout raises an exception in the main thread, once. A main thread that waits inside C, or for the interpreter's
lock, never gets it; one that drops it goes on waiting. The watch here needs neither: it is a thread of faulthandler's.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Iterator

import pytest

__all__ = ["pytest_configure", "pytest_exception_interact", "pytest_runtest_protocol"]

_LATER_SECONDS = 60.0  #: for what a test that was timed out has to clean up
_errors = pytest.StashKey[int]()
_limit = pytest.StashKey[float]()


def pytest_configure(config: pytest.Config) -> None:
    """Keep the real stderr, which tests may replace."""
    assert sys.__stderr__ is not None
    config.stash[_errors] = os.dup(sys.__stderr__.fileno())
    config.stash[_limit] = 0.0


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Watch a test and its fixtures."""
    marker = item.get_closest_marker("timeout")
    seconds = float(marker.args[0] if marker else item.config.getoption("timeout") or item.config.getini("timeout"))
    item.config.stash[_limit] = seconds + _LATER_SECONDS
    _watch(item.config)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    """Watch on: pytest ends the watch where a test fails, and pytest-timeout its own, before anything is cleaned up."""
    if node.config.stash[_limit]:
        _watch(node.config)


def _watch(config: pytest.Config) -> None:
    faulthandler.dump_traceback_later(config.stash[_limit], exit=True, file=config.stash[_errors])
