"""The `spanloom` command: wiring only; the work is done by the engine, the store port and the worker."""

from __future__ import annotations

import sys

from spanloom.cli.exit_codes import run

__all__ = ["main"]


def main() -> None:
    """Run the command with the process's arguments and exit with its code; see exit_codes.py."""
    sys.exit(run(sys.argv[1:]))
