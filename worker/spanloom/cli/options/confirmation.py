"""The confirmation of bulk operations: a prompt in a terminal, `--yes` in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from spanloom.cli.output import print_line

__all__ = ["check_confirmation", "confirm", "confirmation_options"]


def confirmation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--dry-run` and `--yes` to a command, as its arguments `dry_run` and `yes`."""
    command = click.option("--yes", is_flag=True, help="Do it without asking.")(command)
    return click.option("--dry-run", is_flag=True, help="Tell what it would do, and do nothing.")(command)


def check_confirmation(verb: str, *, yes: bool, dry_run: bool) -> None:
    """Raise UsageError, before anything is read, if a confirmation is needed and there is no terminal to prompt on."""
    if not (yes or dry_run or (sys.stdin.isatty() and sys.stderr.isatty())):
        raise click.UsageError(
            f"without a terminal nobody can be asked whether to {verb} them; give --yes, or --dry-run to see which"
        )


def confirm(question: str, *, yes: bool) -> bool:
    """Prompt on standard error, and return whether the answer was yes; with `yes` there is no prompt."""
    if yes:
        return True
    print_line(f"{question} [y/N] ", stderr=True, end="")
    answer = sys.stdin.readline()
    if not answer:
        print_line(stderr=True)  # the answer was the end of the input: the line is still open
    if answer.strip().lower() in ("y", "yes"):
        return True
    print_line("nothing was done", stderr=True)
    return False
