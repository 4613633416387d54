"""`spanloom events`: the history of an execution, and new events while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import click

from spanloom.cli.options.parameters import find_execution, json_option
from spanloom.cli.options.target import Target, target_options
from spanloom.cli.output import console, draw, in_terminal, print_json, print_line
from spanloom.cli.rendering import event_line, event_text
from spanloom.engine.store.models import Event
from spanloom.engine.store.port import ExecutionStore

__all__ = ["events", "print_events"]

_PAGE = 1000


@click.command()
@click.argument("execution")
@click.option("-f", "--follow", is_flag=True, help="Print new events as they come, until the execution has ended.")
@click.option("--after", metavar="CURSOR", help="Only what came after this event.")
@target_options(redis=True)
@json_option
def events(target: Target, execution: str, follow: bool, after: str | None, as_json: bool) -> None:
    """Print what happened to an execution and its nodes.

    EXECUTION is its id, or the first or last six or more characters of a recent one's. With --follow, Redis makes new
    events show at once; without it they show within a second. To go on with a failed execution that is retried, give
    --after the last cursor.

    In a pipe a line is tab-separated time, event, node, item, attempt, worker, data, cursor. With --json each line is
    one JSON object.

    \b
      spanloom events 3f9a21c4 --follow --json | jq -r 'select(.kind == "node.failed") | .node_id'
    """
    if not follow:
        with target.store() as store:
            print_events(_history(store, find_execution(store, execution).id, after), as_json=as_json)
        return
    with (
        target.watcher() as (store, watcher),
        watcher.events(find_execution(store, execution).id, after, None) as stream,
    ):
        print_events(stream, as_json=as_json)


def print_events(events: Iterable[Event], *, as_json: bool) -> None:
    """Print events as they come: drawn, as tab-separated lines, or as JSON."""
    screen = console() if in_terminal() and not as_json else None
    for event in events:
        if as_json:
            print_json(event)
        elif screen is not None:
            draw(screen, event_text(event))
        else:
            print_line(event_line(event))


def _history(store: ExecutionStore, execution_id: str, after: str | None) -> Iterator[Event]:
    while page := store.get_events(execution_id, after=after, limit=_PAGE):
        yield from page
        after = page[-1].cursor
