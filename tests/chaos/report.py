"""The report: a table with one line for each scenario, what its columns mean, and where one misses the bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from chaos.verify import ScenarioResult

__all__ = ["as_text"]

_COLUMNS: tuple[tuple[str, Callable[[ScenarioResult], object]], ...] = (
    ("faults, one at a time and together", lambda one: one.name),
    ("struck", lambda one: sum(one.faults.values())),
    ("started", lambda one: one.started),
    ("ended", lambda one: one.ended),
    ("lost", lambda one: one.lost),
    ("hung", lambda one: one.hung),
    ("wrong", lambda one: one.wrong + one.unrun),
    ("twice", lambda one: one.twice + one.doubled),
    ("runs", lambda one: one.runs),
    ("again", lambda one: one.repeats),
    ("taken", lambda one: one.taken),
    ("at most", lambda one: one.explained),
    ("refused", lambda one: one.refused),
    ("still", lambda one: _longest(one.still)),
    ("harmed", lambda one: _longest(one.harmed)),
    ("settled", lambda one: f"{one.settling:.1f}"),
    ("seconds", lambda one: f"{one.seconds:.0f}"),
)

_LEGEND = """\
struck   faults that were done
started  executions that an engine told its caller of
ended    of them, completed or failed
lost     started and not in the store, or never started
hung     not ended a minute after the last change, children of executions too
wrong    ended otherwise than foreseen, with another output, or with a result that no handler made
twice    node results and ends recorded more than once, by the events and by what later handlers were given;
         executions beyond the first of one idempotency key, or of one node that starts a child
runs     of handlers, by the trace log that they write themselves
again    of these, more than the executions take if nothing goes wrong: no more than `taken`. Where handlers break
         their processes, without those that a timeout ended or a worker gave back
taken    node runs taken from a worker whose lease had lapsed, by the events: no more than `at most`
at most  what the slots of a worker may hold, for each one killed or stopped; of all for each restart of Postgres
refused  writes that workers were refused because their claim had gone to another
still    longest stall of all: the seconds from the healing of a fault until any handler ran, or a server went down
         again, at most
harmed   longest stall of a run: the seconds from the healing of a fault until a node run that it had taken from its
         worker, or whose job it had taken from Redis, ran (or was pushed) again, at most. A killed worker heals at
         its kill, a stopped one when its lease lapses, a flushed Redis at once, a server when it answers again; what
         went down again in the meantime is waited for.
         Both stay under 3 s where Redis alone was lost, else under a lease and 5 s, after each fault of a scenario
settled  seconds from the end of all faults until every execution had ended"""


def as_text(results: Sequence[ScenarioResult]) -> str:
    """Return the table, the legend, and the misses with their details."""
    rows = [[name for name, _ in _COLUMNS], *([str(value(one)) for _, value in _COLUMNS] for one in results)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_COLUMNS))]
    lines = ["  ".join(_cell(row, place, widths[place]) for place in range(len(row))) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines += ["", _LEGEND]
    for one in results:
        lines += ["", *(f"{one.name} misses the bar: {missed}" for missed in one.misses())] if one.misses() else []
        lines += [f"  {detail}" for detail in one.details]
        if len(one.faults) > 1:
            counts = [
                f"{name} {times} times, still {one.still.get(name, 0.0):.1f}, harmed {one.harmed.get(name, 0.0):.1f}"
                for name, times in one.faults.items()
            ]
            lines += ["", f"{one.name}: {'; '.join(counts)}"]
    lines += ["", "Every scenario meets the bar." if not any(one.misses() for one in results) else "The bar is missed."]
    return "\n".join(lines)


def _longest(stalls: Mapping[str, float]) -> str:
    return f"{max(stalls.values(), default=0.0):.1f}"


def _cell(row: Sequence[str], place: int, width: int) -> str:
    return row[place].ljust(width) if place == 0 else row[place].rjust(width)
