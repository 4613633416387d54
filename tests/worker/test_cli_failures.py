"""The root command starts fast, and what goes wrong ends in an exit code and at most three lines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import click
import pytest

from spanloom.cli.app import ALIASES, SUBCOMMANDS, root
from spanloom.cli.exit_codes import DONE, FAILED, INTERRUPTED, MISTAKE, run
from spanloom.engine.errors import SpanloomError, StoreUnavailable, WaitTimeout, WorkflowInvalid


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make `spanloom stats` raise."""
    monkeypatch.delenv("SPANLOOM_DEBUG", raising=False)

    def make(error: BaseException) -> None:
        @click.command()
        def stats() -> None:
            raise error

        monkeypatch.setattr("spanloom.cli.commands.admin.stats", stats)

    return make


def test_help_imports_neither_the_engine_nor_what_draws() -> None:
    code = (
        "import sys, spanloom.cli.exit_codes as f; code = f.run(['--help']); "
        "print([name for name in ('spanloom.engine', 'pydantic', 'redis', 'rq', 'rich', 'sqlalchemy') "
        "if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == DONE
    assert done.stderr == "[]\n"
    assert all(f"\n  {name} " in done.stdout for name in SUBCOMMANDS)


def test_no_command_at_all_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == DONE
    assert capsys.readouterr().out.startswith("Usage: spanloom ")


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_the_line_in_the_root_help_is_the_first_sentence_of_the_commands_own(name: str) -> None:
    command = root.get_command(click.Context(root), name)
    assert command is not None
    assert command.name == name
    assert (command.help or "").partition("\n")[0] == SUBCOMMANDS[name].line


@pytest.mark.parametrize(("short", "name"), ALIASES.items())
def test_a_shorter_name_is_the_same_command(short: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    group = click.Context(root)
    assert root.get_command(group, short) is root.get_command(group, name)
    assert run(["--help"]) == DONE
    assert f"\n  {short} " not in capsys.readouterr().out


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == DONE
    assert capsys.readouterr().out.startswith(f"Usage: spanloom {name} ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sho"], "No such command 'sho'"),
        (["run"], "Missing argument 'WORKFLOW'"),
        (["run", "orders", "--priority", "urgent"], "'urgent' is not one of 'high', 'normal', 'low'"),
        (["list", "--frobnicate"], "--frobnicate"),
    ],
)
def test_wrong_usage_is_said_in_two_lines(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == MISTAKE
    message, hint = capsys.readouterr().err.splitlines()
    assert said in message
    assert "--help`" in hint


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StoreUnavailable("the store is away"), MISTAKE),
        (WaitTimeout("1", 2, "running"), FAILED),
        (click.Abort(), INTERRUPTED),
        (KeyboardInterrupt(), INTERRUPTED),
    ],
)
def test_each_kind_of_error_has_its_exit_code(
    failing: Callable[[BaseException], None], error: BaseException, code: int
) -> None:
    failing(error)
    assert run(["stats"]) == code


def test_an_error_of_many_lines_is_told_in_three_without_losing_one(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(WorkflowInvalid("etl", [f"problem {number}" for number in range(1, 6)]))
    assert run(["stats"]) == MISTAKE
    assert capsys.readouterr().err.splitlines() == [
        "spanloom: workflow 'etl' is not valid:",
        "- problem 1",
        "- problem 2; problem 3; problem 4; problem 5",
    ]


def test_a_message_can_not_steer_the_terminal(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(SpanloomError("\x1b[2Jgone\tété"))
    run(["stats"])
    assert capsys.readouterr().err == "spanloom: \\x1b[2Jgone\\tété\n"


def test_debug_shows_the_traceback(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(SpanloomError("no"))
    monkeypatch.setenv("SPANLOOM_DEBUG", "1")
    assert run(["stats"]) == MISTAKE
    assert "Traceback" in capsys.readouterr().err


def test_our_own_bugs_keep_their_traceback(failing: Callable[[BaseException], None]) -> None:
    failing(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        run(["stats"])
