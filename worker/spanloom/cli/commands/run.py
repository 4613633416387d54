"""`spanloom run`: starts a workflow, and by default waits for its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import click

from spanloom.cli.commands.events import print_events
from spanloom.cli.options.parameters import duration, json_option, json_value, pair
from spanloom.cli.options.target import Target, target_options
from spanloom.cli.output import in_terminal, print_json, print_line, print_note, progress
from spanloom.engine.errors import ConfigurationError, UnknownExecution, UserError
from spanloom.engine.events.handle import output_of
from spanloom.engine.store.models import Execution
from spanloom.engine.store.requests import Priority

if TYPE_CHECKING:
    from spanloom.engine import WorkflowEngine

__all__ = ["run"]


@click.command()
@click.argument("workflow")
@click.option("--input", "data", type=json_value, metavar="JSON|@FILE|-", help="Its input.  [default: null]")
@click.option("--version", type=int, metavar="N", help="The version.  [default: the latest]")
@click.option(
    "--priority",
    type=click.Choice([priority.value for priority in Priority]),
    default="normal",
    show_default=True,
    help="How urgent its nodes are.",
)
@click.option("--delay", type=duration, metavar="DURATION", help="Start it then: 90, 30s, 5m, 2h, 1d.")
@click.option(
    "--deadline", type=duration, metavar="DURATION", help="Fail it if it has not ended so long after its start."
)
@click.option("--key", metavar="TEXT", help="Idempotency key: the same key starts one execution only.")
@click.option("--key-ttl", type=duration, metavar="DURATION", help="How long the key holds.  [default: always]")
@click.option("--metadata", type=pair, multiple=True, metavar="KEY=VALUE", help="To find it by.  [repeatable]")
@click.option("--wait/--no-wait", default=True, help="Wait for its end, or print its id at once.")
@click.option("--watch", is_flag=True, help="Print what happens until then, as `spanloom events` does.")
@click.option("--timeout", type=duration, metavar="DURATION", help="Wait no longer; the execution goes on.")
@target_options(redis=True)
@json_option
def run(
    target: Target,
    workflow: str,
    data: Any,
    version: int | None,
    priority: str,
    delay: float | None,
    deadline: float | None,
    key: str | None,
    key_ttl: float | None,
    metadata: tuple[tuple[str, str], ...],
    wait: bool,
    watch: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Start a workflow, wait for its end and print its output.

    WORKFLOW is the id of one that is registered, or of one that the engine of --app builds. The output is printed as
    JSON; with --json it is the whole execution. With --watch the lines of `spanloom events` come before it. Ctrl-C ends
    the waiting, not the execution.

    Exit codes: 0 it completed (or was started, with --no-wait); 1 it failed, was cancelled, or had not ended after
    --timeout; 2 it could not be started.

    \b
      spanloom run --app orders:engine orders --input '{"id": 7}'
      jq .order mail.json | spanloom run orders --input - --metadata customer=17
    """
    if watch and not wait:
        raise UserError("give either --watch or --no-wait")
    if key_ttl is not None and key is None:
        raise ConfigurationError("--key-ttl says how long a key holds; give one with --key")
    with target.engine() as engine:
        execution_id = engine.enqueue_workflow(
            workflow,
            data,
            version=version,
            priority=priority,
            delay=delay,
            deadline=deadline,
            idempotency_key=key,
            key_ttl=key_ttl,
            metadata=dict(metadata),
        )
        if not wait:
            if as_json:
                print_json(_read(engine, execution_id))
            else:
                print_line(execution_id)
            return
        with _progress(workflow, execution_id, spinning=not watch) as report:
            execution = _watch(engine, execution_id, timeout, as_json) if watch else engine.wait(execution_id, timeout)
            report(execution)
        _show(execution, as_json)  # before the engine closes: spans may wait for a backend that is away


def _show(execution: Execution, as_json: bool) -> None:
    if as_json:
        print_json(execution)
        output_of(execution)
        return
    print_json(output_of(execution), indent=2 if in_terminal() else None)


def _watch(engine: WorkflowEngine, execution_id: str, timeout: float | None, as_json: bool) -> Execution:
    with engine.events(execution_id, timeout=timeout) as events:
        print_events(events, as_json=as_json)
    return engine.wait(execution_id, timeout)


@contextmanager
def _progress(workflow: str, execution_id: str, *, spinning: bool) -> Generator[Callable[[Execution], None]]:
    """Show the running execution in a terminal, beside the output, and its end or the command that shows it again."""
    name = f"{workflow} {execution_id}"
    goes_on = f"{name} goes on; see `spanloom show {execution_id[-8:]}`"
    if sys.stderr is None or not sys.stderr.isatty():
        try:
            yield lambda _: None
        except KeyboardInterrupt:
            print_line(goes_on, stderr=True)
            raise
        return
    if not spinning:
        print_note(name, stderr=True)
    try:
        with progress(name) if spinning else nullcontext():
            ended: list[Execution] = []
            yield ended.append
    except KeyboardInterrupt:
        print_note(goes_on, stderr=True)
        raise
    for execution in ended:
        print_note(f"{name} {execution.status}", stderr=True)


def _read(engine: WorkflowEngine, execution_id: str) -> Execution:
    execution = engine.store.get_execution(execution_id)
    if execution is None:
        raise UnknownExecution(execution_id)
    return execution
