"""`python -m spanloom.cli`: the `spanloom` command where no script is on the PATH."""

from __future__ import annotations

from spanloom.cli import main

if __name__ == "__main__":
    main()
