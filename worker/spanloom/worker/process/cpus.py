"""The processors that this process may use: what the machine has, less what the system or a container withholds."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["usable_cpus"]

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def usable_cpus(cgroups: Path = _CGROUPS, own: Path = _OWN) -> int:
    """Return the number of processors that this process may keep busy, 1 at least.

    It respects affinity, and the quota of the process' control group and those above it, rounded down: the limit of a
    container, or `CPUQuota` of systemd.
    """
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no control groups, or those of version 1
        (path,) = (line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
        group = cgroups / path.strip("/")
        for above in (group, *group.parents):
            with suppress(OSError, ValueError):  # the first group has no limit
                quota, period = (above / "cpu.max").read_text().split()
                found = min(found, int(quota) // int(period))
            if above == cgroups:
                break
    return max(1, found)
