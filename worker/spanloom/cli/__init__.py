"""The `spanloom` command: wiring only; what it shows and does comes from the engine, the store port and the worker."""

from __future__ import annotations

import sys

from spanloom.cli.exit_codes import run

__all__ = ["main"]


def main() -> None:
    """Run the command with the process's arguments and exit with its code; failures.py says which."""
    sys.exit(run(sys.argv[1:]))
