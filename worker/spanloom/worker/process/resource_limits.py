"""The limits that the system sets a worker's process, and a check that no handler has lowered one."""

from __future__ import annotations

import resource

__all__ = ["limit_failure", "watch_limits"]

_NAMES = tuple(name for name in ("AS", "DATA", "FSIZE", "NOFILE", "NPROC") if hasattr(resource, f"RLIMIT_{name}"))
_watched: dict[str, float] = {}


def watch_limits() -> None:
    """Remember the limits of now, under which this process works."""
    _watched.update({name: _limit(name) for name in _NAMES})


def limit_failure() -> str | None:
    """Return which limit is lower now, so that this process may be able to write or store nothing; None if none is."""
    for name, before in _watched.items():
        if (now := _limit(name)) < before:
            return f"a handler has lowered RLIMIT_{name} of its worker's process, from {before:g} to {now:g}"
    return None


def _limit(name: str) -> float:
    soft, _ = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
    return float("inf") if soft == resource.RLIM_INFINITY else float(soft)
