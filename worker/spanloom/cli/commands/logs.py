"""`spanloom logs` and `spanloom trace`: the log lines and the spans of an execution."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing

import click

from spanloom.cli.options.parameters import find_execution, json_option
from spanloom.cli.options.target import Target, target_options
from spanloom.cli.output import console, draw, in_terminal, print_json, print_line, show
from spanloom.cli.rendering import log_line, log_text, read_family, waterfall, waterfall_lines
from spanloom.engine.errors import StoreUnavailable, UnknownExecution
from spanloom.engine.events.stream import EventWatcher
from spanloom.engine.logs import Logger
from spanloom.engine.store.models import LogRecord
from spanloom.engine.store.port import ExecutionStore

__all__ = ["LogTail", "logs", "trace"]

_log = Logger("spanloom.cli")
_FOLLOW_SECONDS = 0.5  #: between two reads of --follow: the lines of a running node are not published
_PAGE = 1000
_LATE_SECONDS = 5.0


@click.command()
@click.argument("execution")
@click.option("--node", metavar="ID", help="Of this node only.")
@click.option("-f", "--follow", is_flag=True, help="Print new lines as they come, until the execution has ended.")
@target_options(redis=True)
@json_option
def logs(target: Target, execution: str, node: str | None, follow: bool, as_json: bool) -> None:
    """Print an execution's log lines.

    EXECUTION is its id, or the first or last six or more characters of a recent one's. With --follow, Redis makes new
    lines show at once; without it they show within half a second.

    In a pipe a line is tab-separated time, level, node, item, attempt, message, fields; line breaks and tabs in a
    message are escaped. With --json each line is one JSON object.
    """
    if not follow:
        with target.store() as store:
            _print_logs(LogTail(store, find_execution(store, execution).id, node).read(), as_json=as_json)
        return
    with target.watcher() as (store, watcher):
        _print_logs(_followed(store, watcher, find_execution(store, execution).id, node), as_json=as_json)


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
        print_json({"execution_id": found.id, "spans": spans})
    else:
        show(
            lambda screen: waterfall(spans, width=screen.width, now_ns=time.time_ns(), family=executions),
            lambda: waterfall_lines(spans, family=executions),
        )
    if not family.whole:
        print_line(f"of its family the {len(executions):,} executions nearest to it are shown", stderr=True)


class LogTail:
    """A reader of an execution's lines, which yields each line once.

    Where transactions overlap, a line may be committed after one with a higher id was read. So the latest thousand ids
    are read again until they are five seconds old.
    """

    def __init__(self, store: ExecutionStore, execution_id: str, node_id: str | None) -> None:
        self._store = store
        self._execution_id = execution_id
        self._node_id = node_id
        self._settled = 0  # no read goes back beyond this id
        self._recent: deque[tuple[int, float]] = deque()  # ids after it, as they were read, and when
        self._read: set[int] = set()  # the same ids

    def read(self) -> Iterator[LogRecord]:
        """Yield the new lines. Raises StoreUnavailable."""
        after = self._settled
        while page := self._store.get_logs(self._execution_id, node_id=self._node_id, after=after, limit=_PAGE):
            for record in page:
                if record.id not in self._read:
                    self._note(record.id)
                    yield record
            after = page[-1].id
        while self._recent and self._recent[0][1] < time.monotonic() - _LATE_SECONDS:
            self._settle()

    def _note(self, line_id: int) -> None:
        self._read.add(line_id)
        self._recent.append((line_id, time.monotonic()))
        if len(self._recent) > _PAGE:
            self._settle()

    def _settle(self) -> None:
        line_id, _ = self._recent.popleft()
        self._read.discard(line_id)
        self._settled = max(self._settled, line_id)


def _print_logs(records: Iterable[LogRecord], *, as_json: bool) -> None:
    screen = console() if in_terminal() and not as_json else None
    for record in records:
        if as_json:
            print_json(record)
        elif screen is not None:
            draw(screen, log_text(record))
        else:
            print_line(log_line(record))


def _followed(store: ExecutionStore, watcher: EventWatcher, execution_id: str, node: str | None) -> Iterator[LogRecord]:
    tail = LogTail(store, execution_id, node)
    with closing(watcher.changes(execution_id, every=_FOLLOW_SECONDS)) as changes:
        for _ in changes:
            try:
                # Read before the lines, so that the last lines are among them.
                ended = _ended(store, execution_id)
                yield from tail.read()
            except StoreUnavailable as error:
                _log.warning("logs_wait_for_store", execution_id=execution_id, error=str(error))
                continue
            if ended:
                return


def _ended(store: ExecutionStore, execution_id: str) -> bool:
    execution = store.get_execution(execution_id, data_limit=0)
    if execution is None:
        raise UnknownExecution(execution_id)
    return execution.status.ended
