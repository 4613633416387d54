"""In which order each of the suite's processes reads the test files: to read one first rewrites its assertions."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest

__all__ = ["begin_elsewhere"]

_TESTS = Path(__file__).parent.parent


def begin_elsewhere(config: pytest.Config) -> None:
    """Let each process of a run of everything begin with a share of the files of its own.

    In a fresh clone that takes seconds, and they would do it side by side for the same files. As it is, each finds what
    the others have left in `__pycache__`.
    """
    worker = getattr(config, "workerinput", None)
    if worker is None or [Path(one).resolve() for one in config.args] != [_TESTS]:
        return
    number, count = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
    files = sorted(_TESTS.rglob("test_*.py"))
    read = [0, *accumulate(path.stat().st_size for path in files)]
    begin = next(place for place, size in enumerate(read) if size >= read[-1] * number // count)
    config.args = [str(path) for path in files[begin:] + files[:begin]]
