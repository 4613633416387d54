"""A test that can't be timed out ends its process, with the stacks of all threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CONFTEST = """
import support.hanging
support.hanging._LATER_SECONDS = 0.2
pytest_plugins = ["support.hanging"]
"""
HANGS = """
import threading, time
import pytest

@pytest.fixture
def never_cleaned_up():
    yield
    threading.Event().wait()

@pytest.mark.timeout(0.2)
def test_drops_its_timeout():
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass

@pytest.mark.timeout(0.2)
def test_fails_first(never_cleaned_up):
    assert False
"""


def test_tests_that_hang_in_spite_of_their_timeout_end_with_their_stacks(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_hangs.py").write_text(HANGS)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    for test, function in (("test_drops_its_timeout",) * 2, ("test_fails_first", "never_cleaned_up")):
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{tmp_path}/test_hangs.py::{test}"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert ran.returncode == 1
        assert "Timeout (0:00:00.4" in ran.stderr
        assert f"in {function}" in ran.stderr
