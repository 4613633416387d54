"""In what two stories of an execution differ: the one that was told, and the one that was seen."""

from __future__ import annotations

from collections.abc import Iterator

from differential.app import plain
from differential.reference import ENDED, Run, Story


def differences(told: Story, seen: Story, where: str = "") -> Iterator[str]:
    """Yield in what an execution differs from what was told of it.

    In one that completed everything must agree. In one that failed it is a race which other branches ran: what has
    ended must agree, what was not to run must not have, and its error is one of those that nothing handles.
    """
    if seen.status != told.status:
        yield f"{where or 'the execution'} is {seen.status}, not {told.status} (its error: {seen.error})"
    if seen.status == "completed" == told.status and plain(seen.output) != plain(told.output):
        yield f"{where or 'the execution'} has the output {plain(seen.output)}, not {plain(told.output)}"
    unhandled = [(name, run.error) for name, run in told.runs.items() if run.status == "failed" and not run.handled]
    if seen.status == "failed" == told.status:
        if seen.error not in unhandled:
            yield f"{where or 'the execution'} failed for {seen.error}, not for one of {unhandled}"
        elif seen.runs[seen.error[0]].status != "failed":
            yield f"{where or 'the execution'} failed for {seen.error}, whose run is {seen.runs[seen.error[0]].status}"
    for name, run in told.runs.items():
        yield from _run_differs(run, seen.runs.get(name, Run()), f"{where}/{name}", loose=seen.status != "completed")
    for name in seen.runs.keys() - told.runs.keys():
        yield f"{where}/{name} ran, and is no node"


def _run_differs(told: Run, seen: Run, where: str, *, loose: bool) -> Iterator[str]:
    if told.status == "absent":
        if seen.status not in ("absent", "pending") or seen.calls:
            yield f"{where} is {seen.status} after {seen.calls} calls, and was not to run"
        return
    if seen.status not in ENDED:
        if not loose:
            yield f"{where} is {seen.status}, not {told.status}"
        elif seen.calls > told.calls:
            yield f"{where} was called {seen.calls} times, more than {told.calls} times, and is {seen.status}"
    else:
        for what in ("status", "error", "attempt", "calls"):
            if getattr(seen, what) != getattr(told, what):
                yield f"{where} has {what} {getattr(seen, what)!r}, not {getattr(told, what)!r}"
        if seen.status != "failed" and plain(seen.data) != plain(told.data):
            yield f"{where} has data {plain(seen.data)}, not {plain(told.data)}"
        if seen.status == "failed" and plain(seen.data) != (left := plain(told.data) if told.handled else None):
            yield f"{where} failed and left {plain(seen.data)}, not {left}"
    # Of a mapped node that failed for its items, those that were never started are absent.
    loose = loose or told.error == "ItemsFailed"
    for number, item in told.items.items():
        found = seen.items.get(number, Run())
        if found.status != "absent" or not loose:
            yield from _run_differs(item, found, f"{where}[{number}]", loose=loose)
    if extra := seen.items.keys() - told.items.keys():
        yield f"{where} has items {sorted(extra)}, and was to have {len(told.items)}"
    children = seen.children[told.older :]
    if len(children) > len(told.children) or (seen.status in ENDED and len(children) < len(told.children)):
        yield f"{where} has {len(children)} new children, not {len(told.children)}"
    for number, (child, child_seen) in enumerate(zip(told.children, children, strict=False)):
        if child_seen.status in ("completed", "failed"):
            yield from differences(child, child_seen, f"{where}>{number}")
