"""`spanloom replay`: a new execution with the data of an earlier one, from its beginning or from a node on."""

from __future__ import annotations

from typing import Literal

import click

from spanloom.cli.output import print_json
from spanloom.cli.parameters import find_execution, json_option
from spanloom.cli.target import Target, target_options

__all__ = ["replay"]


@click.command()
@click.argument("execution")
@click.option(
    "--version",
    type=lambda text: _version(text),
    metavar="N|latest",
    help="In which version of the workflow.  [default: its own]",
)
@click.option(
    "--from",
    "from_nodes",
    multiple=True,
    metavar="NODE",
    help="Run this node and what follows from it; take over the other results.  [repeatable]",
)
@click.option("--key", metavar="TEXT", help="Idempotency key: the same key starts one execution only.")
@target_options(redis=True)
@json_option
def replay(
    target: Target,
    execution: str,
    version: int | Literal["latest"] | None,
    from_nodes: tuple[str, ...],
    key: str | None,
    as_json: bool,
) -> None:
    """Start a new execution with the data of an earlier one.

    EXECUTION is the id of the earlier one, or the first or last six or more characters of a recent one's; it stays as
    it is. The new one has its input, priority, deadline and metadata; without --from all nodes run, with --from these
    and all that follows from them, so far as the others had ended.

    Prints the new id, or with --json the new execution, and does not wait: `spanloom show` tells how it goes.

    \b
      spanloom replay 3f9a21c4 --version latest --from charge
    """
    with target.operator() as engine:
        source = find_execution(engine.store, execution)
        execution_id = engine.replay_execution(
            source.id, version=version or "same", from_node=from_nodes or None, idempotency_key=key
        )
        started = find_execution(engine.store, execution_id) if as_json else None
    if started is not None:
        print_json(started)
    else:
        click.echo(execution_id)


def _version(text: str) -> int | Literal["latest"]:
    if text == "latest":
        return "latest"
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is no version; write its number, or latest")
    return int(text)
