"""What tests of the commands ask for: a store with something in it, and commands that are run over it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from spanloom.cli.exit_codes import DONE, run
from spanloom.engine import ExecutionStore
from spanloom.stores import open_store
from support.cli import Control, Invoke, fill


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A working directory of the test's own, and no setting of whoever runs it."""
    for name in list(os.environ):
        if name.startswith("SPANLOOM_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store(sqlite_url: str) -> Iterator[ExecutionStore]:
    """An execution that failed at its second node, OLDER, and one that waits, NEWER."""
    store = open_store(sqlite_url)
    store.open()
    fill(store)
    yield store
    store.close()


@pytest.fixture
def invoke(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Run a command over the store and return what it printed."""

    def invoke(*arguments: str, code: int = DONE) -> str:
        assert run([*arguments, "--store", sqlite_url]) == code
        return capsys.readouterr().out

    return invoke


@pytest.fixture
def control(sqlite_url: str, redis_url: str, capsys: pytest.CaptureFixture[str]) -> Control:
    """Run a command that changes executions; return its exit code, what it printed, and what it complained of."""

    def control(*arguments: str) -> tuple[int, list[list[str]], str]:
        code = run([*arguments, "--store", sqlite_url, "--redis", redis_url])
        printed = capsys.readouterr()
        return code, [line.split("\t") for line in printed.out.splitlines()], printed.err

    return control
