"""Odd values of the commands' options: exit code 2 and at most three lines, never a traceback."""

from __future__ import annotations

import random
from collections.abc import Iterator

import click
import pytest

from spanloom.cli.app import SUBCOMMANDS, root
from spanloom.cli.exit_codes import FAILED, MISTAKE, run
from support.cli import NEWER, OLDER

pytestmark = pytest.mark.usefixtures("clean_environment", "store")

ODD = (
    "", " ", "\udcff", "\x1b[2J", "\u202e", "[/]", "-1", "0", "1.5", "nan", "inf", "1e400", "9" * 400,
    "9" * 5000, "2147483648", "9223372036854775808", "999999999d", "99999999999999h", "0d", "latest", "k=v", "k=\udcff",
    "\udcff=v", "a\nb", "x" * 20_000,
    "[" * 5_000, '{"a": "\\ud800"}', "@", "@/nowhere", "@/dev", "2026-01-01", "0001-01-01", "9999-12-31T23:59:59+00:00",
    "9999-12-31T23:59:59-14:00", "n1:99999999999", "W1tb", "completed,", "memory://", "redis://[", OLDER, NEWER,
)  # fmt: skip
#: What a command needs beside the option that is odd.
NEEDED: dict[str, list[str]] = {
    "run": ["mail", "--no-wait"],
    "show": [OLDER],
    "replay": [OLDER],
    "cancel": ["--all", "--dry-run"],
    "pause": ["--all", "--dry-run"],
    "resume": ["--all", "--dry-run"],
    "retry": ["--all", "--dry-run"],
    "acknowledge": ["--all", "--dry-run"],
    "fail": [NEWER, "--error", "no"],
    "events": [OLDER],
    "logs": [OLDER],
    "trace": [OLDER],
    "purge": ["--older-than", "1d", "--dry-run"],
    "node complete": [OLDER, "n1"],
    "node fail": [OLDER, "n1", "--error", "no"],
    "node skip": [OLDER, "n1"],
}
_LEFT_OUT = {"worker"}  # its options are those of a model
_OF_THE_TEST = {"--store", "--redis", "--app", "--follow", "--help"}


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(root)
    for name in SUBCOMMANDS:
        command = root.get_command(context, name)
        if isinstance(command, click.Group):
            yield from ((f"{name} {under}", each) for under, each in command.commands.items())
        elif command is not None and name not in _LEFT_OUT:
            yield name, command


def calls() -> list[list[str]]:
    """Every option and argument of every command, with every odd value."""
    made: list[list[str]] = []
    for name, command in commands():
        needed = NEEDED.get(name, [])
        for parameter in command.params:
            if isinstance(parameter, click.Argument):
                others = [each for each in needed if not each.startswith("-")][1:]
                made += [[*name.split(), "--", odd, *others] for odd in ODD]
                made += [[*name.split(), odd, *needed[1:]] for odd in ODD[:4]]
            elif (
                isinstance(parameter, click.Option) and not parameter.is_flag and parameter.opts[0] not in _OF_THE_TEST
            ):
                made += [[*name.split(), *needed, parameter.opts[0], odd] for odd in ODD]
    return made


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(1.0, marks=[pytest.mark.torture, pytest.mark.timeout(1800)], id="all"),
        pytest.param(0.06, id="some"),
    ],
)
def test_an_odd_value_is_a_mistake_in_three_lines(
    part: float, sqlite_url: str, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    every = calls()
    assert len(every) > 1_500
    chosen = random.Random(1).sample(every, int(len(every) * part))
    mistakes = 0
    for arguments in chosen:
        takes_redis = any("--redis" in each.opts for each in _parameters(arguments))
        urls = ["--store", sqlite_url, *(["--redis", redis_url] if takes_redis else [])]
        at = arguments.index("--") if "--" in arguments else len(arguments)
        try:
            code = run([*arguments[:at], *urls, *arguments[at:]])
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} of {ascii(arguments)[:300]}") from error
        printed = capsys.readouterr()
        if code in (MISTAKE, FAILED):
            mistakes += 1
            lines = printed.err.splitlines()
            assert 1 <= len(lines) <= 3, f"{lines} of {ascii(arguments)[:300]}"
            assert all(line.isprintable() for line in lines if line.isascii()), arguments
    assert mistakes > len(chosen) / 2


def _parameters(arguments: list[str]) -> list[click.Parameter]:
    for name, command in commands():
        if arguments[: len(name.split())] == name.split():
            return command.params
    raise AssertionError(arguments)
