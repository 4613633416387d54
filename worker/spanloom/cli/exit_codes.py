"""Exit codes: a command's error becomes a code and at most three lines; Spanloom's own bugs keep their traceback."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence

import click

from spanloom.cli.app import root

__all__ = ["DONE", "FAILED", "INTERRUPTED", "MISTAKE", "report", "run"]

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130
_LINES = 3
_OF_WORKFLOWS = "`spanloom workflows` lists what is registered, `spanloom register FILE` registers"


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code.

    SPANLOOM_DEBUG=1 shows the traceback of every error. An exception that is no SpanloomError is a bug, and raised.
    """
    try:
        outcome = root.main(args=list(arguments), prog_name="spanloom", standalone_mode=False)
    except click.ClickException as error:
        return report(error, _usage(error), MISTAKE)
    except click.Abort:  # Ctrl-C
        return INTERRUPTED
    except Exception as error:
        # Imported here: `spanloom --help` does without the engine.
        from spanloom.engine.errors import ExecutionFailed, SpanloomError, UnknownWorkflow, WaitTimeout

        if not isinstance(error, SpanloomError):
            raise
        hint = f"\n{_OF_WORKFLOWS}" if isinstance(error, UnknownWorkflow) else ""
        code = FAILED if isinstance(error, ExecutionFailed | WaitTimeout) else MISTAKE
        return report(error, f"{error}{hint}", code)
    return outcome if isinstance(outcome, int) else DONE


def _usage(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"\nsee `{context.command_path} --help`" if context is not None else ""
    return f"{error.format_message()}{hint}"


def report(error: Exception, message: str, code: int) -> int:
    """Print an error's message on standard error, in at most three lines, and return the exit code."""
    from spanloom.cli.output import print_line, print_text  # as above
    from spanloom.engine.escaping import escaped

    if os.environ.get("SPANLOOM_DEBUG"):
        print_text("".join(traceback.format_exception(error)).rstrip(), stderr=True)
    lines = [line.strip() for line in f"spanloom: {message}".split("\n") if line.strip()]
    if len(lines) > _LINES:
        first, *rest = lines[_LINES - 1 :]
        lines[_LINES - 1 :] = ["; ".join((first, *(line.removeprefix("- ") for line in rest)))]
    for line in lines:
        print_line(escaped(line), stderr=True)
    return code
