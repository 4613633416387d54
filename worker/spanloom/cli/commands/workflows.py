"""`spanloom workflows` and `spanloom register`: a list of definitions, and a new version of one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from spanloom.cli.options.parameters import json_option, page_options
from spanloom.cli.options.target import Target, target_options
from spanloom.cli.output import in_terminal, print_json, print_line, print_note, show
from spanloom.cli.rendering import version_lines, versions_table, workflow_lines, workflows_table
from spanloom.engine import load_workflow
from spanloom.engine.errors import UnknownWorkflow
from spanloom.engine.workflow.validation import validate

__all__ = ["register", "workflows"]


@click.command()
@click.argument("workflow", required=False)
@page_options(100)
@target_options()
@json_option
def workflows(target: Target, workflow: str | None, limit: int, cursor: str | None, as_json: bool) -> None:
    """List workflows, or the versions of one.

    In a pipe a workflow is a line of tab-separated id, name, latest version, state, created, updated; a version one of
    workflow, version, name, number of nodes, registered, by, notes. With --json it is one document,
    {"items": […], "next_cursor": …}; a version's item has its whole definition.
    """
    now = datetime.now(UTC)
    with target.store() as store:
        if workflow is None:
            page = store.list_workflows(limit=limit, cursor=cursor)
            if as_json:
                print_json(page)
            elif in_terminal() and not page.items:
                print_note(f"no workflow is registered in {store.url}")
            else:
                show(lambda screen: workflows_table(page.items, now), lambda: workflow_lines(page.items))
            return
        versions = store.list_workflow_versions(workflow, limit=limit, cursor=cursor)
    if not versions.items and cursor is None:
        raise UnknownWorkflow(workflow)
    if as_json:
        print_json(versions)
        return
    show(lambda screen: versions_table(versions.items, now), lambda: version_lines(versions.items))


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--notes", metavar="TEXT", help="What changed.")
@click.option("--by", metavar="NAME", help="Who changed it.")
@click.option(
    "--expect-version", type=click.IntRange(0), metavar="N", help="Refuse unless N is the newest (0: none is)."
)
@target_options()
@json_option
def register(
    target: Target, file: Path, notes: str | None, by: str | None, expect_version: int | None, as_json: bool
) -> None:
    """Register a workflow file as the next version.

    FILE is a workflow in JSON or YAML. Content that equals the newest version's makes no new one. With --app its node
    types are checked against the handlers of that engine; without, only the graph is checked.
    """
    definition = load_workflow(file)
    engine = target.load_app()
    validate(definition, engine.registry if engine else None)
    with target.store(create=True) as store:
        version = store.save_workflow(definition, change_notes=notes, created_by=by, expected_version=expect_version)
    if as_json:
        print_json({"workflow_id": definition.id, "version": version})
    else:
        print_line(f"{definition.id}\t{version}" if not in_terminal() else f"{definition.id} is at version {version}")
