"""The stalls: how long the work stood still after a fault had healed.

Two are measured. *Anything*: from the healing until any handler runs, or a server goes down again, while executions
were open. *The harmed*: of every node run that was lost with its worker, or whose job was lost with Redis, from the
healing of the fault that did it until the run has started again (or was pushed again, and that push lost again). What
heals in the end is counted from the last healing: while servers are down again, nothing can run.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from chaos.environment import Injection
from chaos.history import History
from spanloom.engine.store.models import Event

__all__ = ["harmed_stalls", "longest_stalls"]

_REDIS = frozenset({"flush-redis", "kill-redis", "refuse-redis", "forbid-scripts", "spoil-keys"})
_STORE = frozenset({"restart-postgres", "terminate-backends", "refuse-writes"})
_SERVERS = frozenset({"kill-redis", "refuse-redis", "forbid-scripts", "restart-postgres", "refuse-writes"})
_STARTED = "node.started"
_QUEUED = "node.queued"


def longest_stalls(history: History, injections: Sequence[Injection]) -> dict[str, float]:
    """Return by fault how long nothing at all ran after it had healed, at most."""
    ran = sorted(entry.at for entry in history.entries)
    ends = [execution.ended_at.timestamp() for execution in history.executions.values() if execution.ended_at]
    down = sorted(injection.at for injection in injections if injection.fault in _SERVERS)
    up = [injection.healed_at for injection in injections if injection.fault in _SERVERS]
    longest: dict[str, float] = {}
    for injection in injections:
        following = bisect_left(ran, injection.healed_at)
        if following < len(ran) and any(end > injection.healed_at for end in ends):
            since = max([injection.healed_at, *(one for one in up if one <= ran[following])])
            next_down = bisect_left(down, since)
            until = min([ran[following], *down[next_down : next_down + 1]])
            longest[injection.fault] = max(longest.get(injection.fault, 0.0), until - since)
    return longest


def harmed_stalls(history: History, injections: Sequence[Injection]) -> dict[str, list[float]]:
    """Return the stalls of the runs that a fault harmed, by its name; `none` has those that no fault explains."""
    found: dict[str, list[float]] = {}
    for events in history.events_by_run().values():
        for place, event in enumerate(events):
            because = event.data.get("because") if event.kind == _QUEUED else None
            if because not in ("lost_worker", "lost_redis", "lost_job"):
                continue
            before = _last_with(events[:place], (_STARTED,) if because == "lost_worker" else (_QUEUED,))
            injection = _explanation(before, event, because, injections)
            again = _first_with(events[place + 1 :], (_STARTED, _QUEUED))
            if again is None:
                continue  # cancelled, or hung: reported elsewhere
            healed_at = injection.healed_at if injection is not None else event.at.timestamp()
            started_at = again.at.timestamp()
            healings = [one.healed_at for one in injections if one.fault in _SERVERS and one.healed_at <= started_at]
            # What was queued after the healing, by who did not know yet of the loss, has not stood still before that.
            there_at = before.at.timestamp() if before is not None else 0.0
            stall = max(0.0, started_at - max(healed_at, there_at, *healings))
            found.setdefault(injection.fault if injection is not None else "none", []).append(stall)
    return found


def _explanation(before: Event | None, event: Event, because: str, injections: Sequence[Injection]) -> Injection | None:
    """Return the fault that made a run's recovery necessary: the first since its last push, or its claim."""
    begin = before.at.timestamp() if before is not None else 0.0
    worker = (before.worker_id or "").partition(":")[0] if before is not None else ""
    past = [one for one in sorted(injections, key=lambda one: one.at) if one.at <= event.at.timestamp()]
    if because == "lost_worker":
        found = [injection for injection in past if injection.worker == worker or injection.fault in _STORE]
    elif because == "lost_redis":
        found = [injection for injection in past if injection.fault in _REDIS]
    else:
        found = past
    since = [injection for injection in found if injection.healed_at >= begin]
    # A job pushed just after its Redis was lost is pushed again as well: whoever pushed it did not know yet.
    return since[0] if since else found[-1] if found and because == "lost_redis" else None


def _first_with(events: Iterable[Event], kinds: Sequence[str]) -> Event | None:
    return next((event for event in events if event.kind in kinds), None)


def _last_with(events: Sequence[Event], kinds: Sequence[str]) -> Event | None:
    return _first_with(reversed(events), kinds)
