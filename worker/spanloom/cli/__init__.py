"""The `spanloom` command: wiring only; the work is done by the engine, the store port and the worker."""

from __future__ import annotations

import os
import sys

from spanloom.cli.exit_codes import run

__all__ = ["main"]


def main() -> None:
    """Run the command with the process's arguments and exit with its code; see exit_codes.py."""
    _open_closed_streams()
    sys.exit(run(sys.argv[1:]))


def _open_closed_streams() -> None:
    """Open streams that were closed before the start (`2>&-`): sockets would take their numbers."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                opened = os.open(os.devnull, os.O_RDWR)
                os.dup2(opened, number)  # inheritable, as it is for what is started from here
                if opened > 2:
                    os.close(opened)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  for as long as the process lasts
