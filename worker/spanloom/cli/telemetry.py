"""`spanloom logs` and `spanloom trace`: what an execution said, and where its time went."""

from __future__ import annotations

import time
from collections.abc import Iterator

import click

from spanloom.cli.output import console, in_terminal, print_json, show
from spanloom.cli.parameters import find_execution, json_option
from spanloom.cli.rendering import log_line, log_text, read_family, waterfall, waterfall_lines
from spanloom.cli.target import Target, target_options
from spanloom.engine.errors import UnknownExecution
from spanloom.engine.store import ExecutionStore
from spanloom.engine.views import LogRecord

__all__ = ["logs", "trace"]

_PAGE = 1000
_FOLLOW_SECONDS = 0.5  #: how often --follow looks for new lines


@click.command()
@click.argument("execution")
@click.option("--node", metavar="ID", help="Of this node only.")
@click.option("-f", "--follow", is_flag=True, help="Print new lines as they come, until the execution has ended.")
@target_options()
@json_option
def logs(target: Target, execution: str, node: str | None, follow: bool, as_json: bool) -> None:
    """Print an execution's log lines.

    EXECUTION is its id, or the first or last six or more characters of a recent one's.

    In a pipe a line is tab-separated time, level, node, item, attempt, message, fields; line breaks and tabs in a
    message are escaped. With --json each line is one JSON object.
    """
    screen = console() if in_terminal() and not as_json else None
    with target.store() as store:
        for record in _records(store, find_execution(store, execution).id, node, follow=follow):
            if as_json:
                print_json(record)
            elif screen is not None:
                screen.print(log_text(record), soft_wrap=True)
            else:
                click.echo(log_line(record))


@click.command()
@click.argument("execution")
@target_options()
@json_option
def trace(target: Target, execution: str, as_json: bool) -> None:
    """Show the spans of an execution and its children as a waterfall.

    EXECUTION is its id, or the first or last six or more characters of a recent one's. Spans stand below their
    parents, each with a bar where its time lies in the whole; a child's below the attempt that started it. In a
    terminal, the shortest of many siblings share a line.

    In a pipe a line is tab-separated name (indented), seconds since the trace began, seconds it took, status, kind,
    node, item, attempt, span id, parent's span id, execution. With --json: {"execution_id": …, "spans": […]}.
    """
    with target.store() as store:
        found = find_execution(store, execution)
        family = read_family(store, found)
    spans, executions = family.spans, family.executions
    if as_json:
        print_json({"execution_id": found.id, "spans": [span.model_dump(mode="json") for span in spans]})
    else:
        show(
            lambda screen: waterfall(spans, width=screen.width, now_ns=time.time_ns(), family=executions),
            lambda: waterfall_lines(spans, family=executions),
        )
    if not family.whole:
        click.echo(f"of its family the {len(executions):,} executions nearest to it are shown", err=True)


def _records(store: ExecutionStore, execution_id: str, node: str | None, *, follow: bool) -> Iterator[LogRecord]:
    after = 0
    while True:
        # Read before the lines are: what comes with the end is then among them.
        ended = not follow or _ended(store, execution_id)
        while page := store.get_logs(execution_id, node_id=node, after=after, limit=_PAGE):
            yield from page
            after = page[-1].id
        if ended:
            return
        time.sleep(_FOLLOW_SECONDS)


def _ended(store: ExecutionStore, execution_id: str) -> bool:
    execution = store.get_execution(execution_id)
    if execution is None:
        raise UnknownExecution(execution_id)
    return execution.status.ended
