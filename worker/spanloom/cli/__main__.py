"""The `spanloom` command as `python -m spanloom.cli`, for environments without the script on the PATH."""

from __future__ import annotations

from spanloom.cli import main

if __name__ == "__main__":
    main()
