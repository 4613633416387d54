"""A folder whose files are in memory, for what tests write."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["memory_disk"]

_SHM = Path("/dev/shm")
_ROOM_BYTES = 4 << 30


def memory_disk() -> Path | None:
    """Return the folder; None where there is none, has no room, or runs no programs."""
    if not _SHM.is_dir() or not os.access(_SHM, os.W_OK) or shutil.disk_usage(_SHM).free < _ROOM_BYTES:
        return None
    return None if os.statvfs(_SHM).f_flag & os.ST_NOEXEC else _SHM
