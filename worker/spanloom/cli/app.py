"""The root command and the table of subcommands; each module is imported when its command is used, not before."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import click

__all__ = ["SUBCOMMANDS", "root"]


class Subcommand(NamedTuple):
    """The place of a subcommand, and its line in `spanloom --help`, which equals the first sentence of its own help."""

    module: str
    attribute: str
    line: str


SUBCOMMANDS = {
    "worker": Subcommand("worker", "worker", "Run node jobs until told to stop."),
    "run": Subcommand("run", "run", "Start a workflow, wait for its end and print its output."),
    "list": Subcommand("executions", "list_executions", "List executions, newest first."),
    "show": Subcommand("executions", "show", "Show one execution and what became of its nodes."),
    "dead-letters": Subcommand(
        "dead_letters", "dead_letters", "List failed executions that wait for someone, newest first."
    ),
    "cancel": Subcommand("control", "cancel", "Cancel executions and their children."),
    "pause": Subcommand("control", "pause", "Pause executions and their children."),
    "resume": Subcommand("control", "resume", "Let paused executions and their children go on."),
    "retry": Subcommand("control", "retry", "Run failed executions on from where they failed."),
    "replay": Subcommand("replay", "replay", "Start a new execution with the data of an earlier one."),
    "acknowledge": Subcommand("control", "acknowledge", "Take failed executions off the list of dead letters."),
    "fail": Subcommand("manual", "fail", "Fail running or paused executions by hand."),
    "node": Subcommand("manual", "node", "End a node by hand, in place of a worker."),
    "events": Subcommand("events", "events", "Print what happened to an execution and its nodes."),
    "logs": Subcommand("logs", "logs", "Print an execution's log lines."),
    "trace": Subcommand("logs", "trace", "Show the spans of an execution and its children as a waterfall."),
    "workflows": Subcommand("workflows", "workflows", "List workflows, or the versions of one."),
    "register": Subcommand("workflows", "register", "Register a workflow file as the next version."),
    "migrate": Subcommand("admin", "migrate", "Bring a store's schema to this release's version."),
    "purge": Subcommand("purge", "purge", "Delete executions that ended long ago."),
    "stats": Subcommand("admin", "stats", "Count executions, open node runs and workers."),
}
ALIASES = {"dead": "dead-letters"}  #: shorter names, which the help does not list


class _LazyGroup(click.Group):
    """A group that lists its subcommands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = SUBCOMMANDS.get(ALIASES.get(cmd_name, cmd_name))
        if found is None:
            return None
        command = getattr(importlib.import_module(f"spanloom.cli.commands.{found.module}"), found.attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, found.line) for name, found in SUBCOMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="spanloom")
@click.pass_context
def root(context: click.Context) -> None:
    """Durable node workflows on a Redis queue, traced end to end.

    Every command finds its store and Redis in one of three ways: --app MODULE:ENGINE (or SPANLOOM_APP) uses those of
    your engine; --store and --redis are URLs; without either, SPANLOOM_STORE_URL and SPANLOOM_REDIS_URL are used.

    \b
      spanloom worker orders:engine --processes 4
      spanloom run --app orders:engine orders --input '{"id": 7}'
      spanloom show 3f9a21c4        an id's last or first six characters do, while they are unique

    In a terminal the output is drawn; in a pipe it is tab-separated, without colours and never cut; with --json it is
    JSON, with the fields of the Python models. Exit codes: 0 done; 1 the request failed, such as a run that ended as
    failed or a retry that is refused; 2 a mistake in the request, or a service that does not answer.
    """
    if context.invoked_subcommand is None:
        from spanloom.cli.output import print_text  # the engine, too, is for commands

        print_text(context.get_help())
