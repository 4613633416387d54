"""The creation of a database's file, readable and writable for its owner only."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["create_private"]


def create_private(path: Path) -> None:
    """Create an empty file of mode 0600 unless there is one. SQLite gives its -wal and -shm the mode of the file.

    The file gets its name once it is closed: to close a file of a database ends all locks that this process has on it.
    An error is left to SQLite, which explains it.
    """
    if path.exists():
        return
    try:
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(number)
        try:
            os.link(name, os.path.realpath(path))
        finally:
            os.unlink(name)
    except OSError:  # another process was first, or this file system has no links
        return
