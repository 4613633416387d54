"""`spanloom purge`: the deletion of executions that ended long ago, and its dry run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta

import click

from spanloom.cli.exit_codes import DONE, FAILED
from spanloom.cli.options.confirmation import check_confirmation, confirm, confirmation_options
from spanloom.cli.options.parameters import duration, json_option
from spanloom.cli.options.target import Target, target_options
from spanloom.cli.output import in_terminal, print_json, print_line
from spanloom.engine.store.models import Execution
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.states import ExecutionStatus

__all__ = ["purge"]

_ENDED = [status.value for status in ExecutionStatus if status.ended]
_PAGE = 1000


@click.command()
@click.option(
    "--older-than", type=duration, required=True, metavar="DURATION", help="That ended longer ago: 12h, 30d, 365d."
)
@click.option(
    "--status",
    "statuses",
    default="completed,cancelled",
    show_default=True,
    callback=lambda ctx, param, value: _statuses(value),
    metavar="STATUS,…",
    help="Whose first execution ended so; failed is the third.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="End after about so many.")
@confirmation_options
@target_options(redis=True)
@json_option
def purge(
    target: Target,
    older_than: float,
    statuses: tuple[ExecutionStatus, ...],
    limit: int | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Delete executions that ended long ago.

    With their nodes, results, logs, spans, events and idempotency keys. Whole families are deleted, by the status of
    their root, the oldest first. A family that is still open, or that ended later, stays. A terminal shows their number
    and prompts; in a pipe --yes is needed.

    Prints the number that was deleted, or with --dry-run would be; with --json {"executions": …, "dry_run": …}.

    \b
      spanloom purge --older-than 30d --yes
      spanloom purge --older-than 365d --status failed --dry-run
    """
    check_confirmation("purge", yes=yes, dry_run=dry_run)
    count = 0
    with target.operator() as engine:
        if dry_run or not yes:
            count = _would_go(engine.store, datetime.now(UTC) - timedelta(seconds=older_than), statuses, limit)
        if count and not dry_run and not confirm(f"{_counted(count)} found; delete them for good?", yes=yes):
            return FAILED
        if not dry_run:
            count = engine.purge_executions(older_than, statuses=statuses, limit=limit)
    if as_json:
        print_json({"executions": count, "dry_run": dry_run})
    elif in_terminal():
        print_line(f"{_counted(count)} {'would be' if dry_run else 'were' if count != 1 else 'was'} deleted")
    else:
        print_line(str(count))
    return DONE


def _would_go(
    store: ExecutionStore, ended_before: datetime, statuses: Collection[ExecutionStatus], limit: int | None
) -> int:
    """Count the executions that a purge would delete, by the rules of the store port's purge_executions."""
    families: dict[str, datetime] = {}  # by their roots: when the root ended
    children: dict[str, tuple[str, bool]] = {}  # each with its parent, and whether it keeps its family
    for execution in _all(store):
        stays = execution.ended_at is None or execution.ended_at >= ended_before
        if execution.parent_execution_id:
            children[execution.id] = execution.parent_execution_id, stays
        elif execution.ended_at is not None and not stays and execution.status in statuses:
            families[execution.id] = execution.ended_at
    sizes = Counter(dict.fromkeys(families, 1))
    for parent, stays in children.values():
        root = parent
        while root in children:
            root = children[root][0]
        if stays:
            families.pop(root, None)
        sizes[root] += 1
    count = 0
    for root in sorted(families, key=families.__getitem__):
        if limit is not None and count >= limit:
            break
        count += sizes[root]
    return count


def _all(store: ExecutionStore) -> Iterator[Execution]:
    cursor: str | None = None
    while True:
        page = store.list_executions(limit=_PAGE, cursor=cursor, data_limit=0)
        yield from page.items
        cursor = page.next_cursor
        if cursor is None:
            return


def _statuses(text: str) -> tuple[ExecutionStatus, ...]:
    given = [name.strip() for name in text.split(",")]
    if wrong := [name for name in given if name not in _ENDED]:
        raise click.BadParameter(
            f"{wrong[0]!r} is no status that executions end with; write some of {','.join(_ENDED)}"
        )
    return tuple(map(ExecutionStatus, given))


def _counted(count: int) -> str:
    return f"{count:,} execution{'' if count == 1 else 's'}"
