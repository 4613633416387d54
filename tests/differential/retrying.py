"""What a retry finds of an execution that failed: what stays as it is, and where the rest goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from differential.reference import ENDED, Run, Story
from spanloom.engine.workflow.definitions import Workflow


def begun(workflows: Mapping[str, Workflow], workflow_id: str, told: Story, seen: Story) -> Story:
    """Return what the retry of an execution starts from: what was told of it, as far as it was seen to have come.

    What completed or was skipped stays, unless it follows a failure that was handled: that node runs again, and
    what comes after it.
    """
    workflow = workflows[workflow_id]
    after: dict[str, list[str]] = {}
    for node in workflow.nodes:
        for parent in node.parents:
            after.setdefault(parent, []).append(node.id)
    again: set[str] = set()
    for name, run in told.runs.items():
        if run.handled and name in seen.runs and seen.runs[name].status == "failed":
            _mark(name, after, again)
    children = {node.id: node.config["workflow"] for node in workflow.nodes if node.type == "workflow"}

    def goes_on(name: str, told: Run, seen: Run, *, item: bool = False) -> Run:
        """Return a run that had failed, or is open: with its latest child, unless it is an item that starts anew."""
        is_open = seen.status not in ENDED
        run = Run(attempt=seen.attempt if is_open else 1, older=len(seen.children))
        if seen.children and (len(seen.children) == seen.attempt if is_open else not item):
            child = told.children[len(seen.children) - 1]
            retried = child.status == "failed"
            run.older -= 1
            run.children = [
                begun(workflows, children[name], child, seen.children[-1]) if retried else _kept_story(child)
            ]
        for number, one in seen.items.items():
            if one.status not in ENDED:
                run.items[number] = goes_on(name, told.items[number], one, item=True)
            elif one.status == seen.status == "failed":
                run.items[number] = _anew(one)
            else:
                run.items[number] = _kept(told.items[number])
        return run

    runs = {}
    for name, run in seen.runs.items():
        if name in again:
            runs[name] = _anew(run)
        elif run.status in ("completed", "skipped"):
            runs[name] = _kept(told.runs[name])
        else:
            runs[name] = goes_on(name, told.runs[name], run)
    return Story("begun", runs=runs)


def _mark(name: str, after: Mapping[str, list[str]], marked: set[str]) -> None:
    for target in after.get(name, ()):
        if target not in marked:
            marked.add(target)
            _mark(target, after, marked)


def _anew(run: Run) -> Run:
    return Run(older=len(run.children), items={number: _anew(item) for number, item in run.items.items()})


def _kept(run: Run) -> Run:
    items = {number: _kept(item) for number, item in run.items.items()}
    return replace(run, calls=0, items=items, children=[_kept_story(child) for child in run.children])


def _kept_story(story: Story) -> Story:
    return replace(story, runs={name: _kept(run) for name, run in story.runs.items()})
