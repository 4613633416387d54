"""The descriptors that a worker's process can't do without, and a check that they are still the same."""

from __future__ import annotations

import os

__all__ = ["descriptor_failure", "watch_descriptor"]

_watched: dict[int, tuple[str, int, int]] = {}  # by number: a name, the device and the inode


def watch_descriptor(name: str, number: int) -> None:
    """Remember a descriptor that stays open for as long as this process works."""
    state = os.fstat(number)
    _watched[number] = (name, state.st_dev, state.st_ino)


def forget_descriptor(number: int) -> None:
    """Watch a descriptor no longer, before it is closed."""
    _watched.pop(number, None)


def descriptor_failure() -> str | None:
    """Return which descriptor was closed by a handler, and perhaps has another file now; None if none."""
    for number, (name, device, inode) in list(_watched.items()):
        try:
            state = os.fstat(number)
        except OSError:
            return f"a handler has closed a descriptor that is not its own: {name}"
        if (state.st_dev, state.st_ino) != (device, inode):
            return f"a handler has closed a descriptor that is not its own, and another file has its number: {name}"
    return None
