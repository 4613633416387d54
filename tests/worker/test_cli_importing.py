"""What a module does when it is imported neither ends the command silently nor gets into its output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spanloom.cli.options import importing
from spanloom.cli.options.importing import import_module
from spanloom.engine.errors import ConfigurationError, SpanloomError
from spanloom.stores import open_store

APP = """
import os, signal, sys
from spanloom.engine import NodeRegistry, WorkflowEngine

engine = WorkflowEngine(NodeRegistry(), "sqlite:///app.db", "redis://localhost:1")
"""
GUARD = "put what it does when it is run under `if __name__ == '__main__':`"

Write = Callable[[str, str], None]
Spanloom = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def ctrl_c_as_in_a_terminal() -> Iterator[None]:
    """A run in the background of a shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write modules into the working directory; what is imported from there is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write


@pytest.fixture
def spanloom(write: Write, tmp_path: Path) -> Spanloom:
    """Run a command on an app whose module ends in some statements."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPANLOOM_")}

    def run(statements: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        write("app", f"{APP}{statements}\n")
        command = [sys.executable, "-m", "spanloom.cli", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    return run


@pytest.mark.parametrize(
    ("statement", "ended"),
    [
        ("sys.exit()", "SystemExit()"),
        ("sys.exit(0)", "SystemExit(0)"),
        ("sys.exit('done')", "SystemExit(done)"),
        ("raise SystemExit(3)", "SystemExit(3)"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt()"),
    ],
)
def test_a_module_that_ends_the_process_is_named_with_its_line(write: Write, statement: str, ended: str) -> None:
    write("ends_all", f"import sys\n{statement}\n")
    with pytest.raises(ConfigurationError) as caught:
        import_module("ends_all", prints=True)
    assert str(caught.value) == (
        f"importing 'ends_all' ended the process at {os.getcwd()}/ends_all.py:2: {ended}\n{GUARD}"
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("arguments", [["run", "--app", "app:engine", "w"], ["worker", "app:engine"]])
def test_a_command_whose_app_ends_the_process_exits_with_2(spanloom: Spanloom, arguments: list[str]) -> None:
    ended = spanloom("sys.exit(0)", *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("spanloom: importing 'app' ended the process at ")
    assert len(ended.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("raise GeneratorExit", "GeneratorExit: "),
        ("class Odd(BaseException): ...\nraise Odd('x')", "Odd: x"),
        ("class Odd(Exception):\n    __str__ = 7\nraise Odd", "Odd: (its message can't be read: TypeError)"),
        ("raise ExceptionGroup('two', [KeyError(1)])", "ExceptionGroup: two (1 sub-exception)"),
    ],
)
def test_whatever_a_module_raises_is_a_sentence(write: Write, statement: str, sentence: str) -> None:
    write("raises_odd", statement)
    with pytest.raises(ConfigurationError) as caught:
        import_module("raises_odd", prints=True)
    assert str(caught.value).startswith(f"importing 'raises_odd' failed at {os.getcwd()}/raises_odd.py:")
    assert sentence in str(caught.value)


def test_an_error_of_ours_is_raised_as_it_is(write: Write) -> None:
    write("misuses", "from spanloom.engine import NodeRegistry\nNodeRegistry().register('', print)\n")
    with pytest.raises(SpanloomError, match="a node type needs a name"):
        import_module("misuses", prints=True)


def test_ctrl_c_while_a_module_is_imported_is_no_mistake_of_the_module(write: Write) -> None:
    write("is_slow", "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    with pytest.raises(KeyboardInterrupt):
        import_module("is_slow", prints=True)


def test_a_signal_handler_that_a_module_sets_stays(write: Write) -> None:
    write("sets_one", "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n")
    import_module("sets_one", prints=True)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_what_a_module_prints_and_whom_it_forks_is_not_in_the_output_of_a_command(spanloom: Spanloom) -> None:
    store = open_store(f"sqlite:///{os.getcwd()}/app.db")
    store.migrate()
    store.close()
    forks = "if os.fork() == 0: sys.exit(3)\nassert os.wait()[1] >> 8 == 3\nos.fork() and os.wait()"
    ended = spanloom(f"print('imported', flush=True)\n{forks}", "list", "--app", "app:engine", "--json")
    assert json.loads(ended.stdout)["items"] == []  # once
    assert ended.returncode == 0
    assert ended.stderr == f"imported\nspanloom: importing 'app' forked this process, which ends here; {GUARD}\n"


def test_an_import_that_does_not_end_is_mentioned_with_its_line(
    write: Write, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importing, "_PATIENCE_SECONDS", 0.01)
    joins = "for timer in threading.enumerate():\n    timer.name.startswith('Thread') and timer.join()\n"
    write("waits", f"import threading\n{joins}")
    import_module("waits", prints=True)  # until it was mentioned
    assert capfd.readouterr().err == (
        f"spanloom: importing 'waits' has not ended after 0.01 s at {os.getcwd()}/waits.py:3; {GUARD}\n"
    )
