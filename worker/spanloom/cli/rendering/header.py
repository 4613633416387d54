"""The header of `spanloom show`: the state, times, parent and error of an execution as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from rich.text import Text

from spanloom.cli.rendering.values import (
    GLYPHS,
    STYLES,
    ago,
    cell,
    duration,
    error_sentence,
    instant,
    seconds_between,
)
from spanloom.engine.escaping import escaped
from spanloom.engine.store.models import Execution

__all__ = ["execution_header", "header_lines", "node_name"]


def execution_header(execution: Execution, now: datetime, parent: Execution | None = None) -> Text:
    """Draw an execution's parent, workflow, status, time, id, metadata and error."""
    text = Text()
    if execution.parent_execution_id:
        text.append(f"↳ child of {_parent_of(execution, parent)}", "bright_black")
        if parent is not None:
            text.append(f"  {GLYPHS[parent.status]} {parent.status}", STYLES.get(parent.status, ""))
        text.append("\n")
    if execution.replay_of:
        text.append(f"↻ replay of {execution.replay_of}\n", "bright_black")
    text.append(f"{execution.workflow_id} v{execution.version}", "bold")
    text.append(f"  {GLYPHS[execution.status]} {execution.status}", STYLES.get(execution.status, ""))
    took = seconds_between(execution.started_at, execution.ended_at or now)
    if took is not None:
        text.append(f" {'in' if execution.ended_at else 'for'} {duration(took)}")
    if execution.acknowledged_at is not None:
        text.append(f", acknowledged {ago(execution.acknowledged_at, now)}", "bright_black")
    facts = [execution.id, f"created {ago(execution.created_at, now)}, {instant(execution.created_at)}"]
    if execution.priority != "normal":
        facts.append(f"priority {execution.priority}")
    if execution.deadline_seconds is not None:
        facts.append(f"deadline {duration(execution.deadline_seconds)}")
    if execution.revision:
        facts.append(f"revision {execution.revision}")
    facts.extend(f"{escaped(key)}={escaped(value)}" for key, value in execution.metadata.items())
    text.append("\n" + "  ".join(facts), "bright_black")
    if execution.error is not None:
        at = f" at node {execution.error['node_id']}" if execution.error.get("node_id") else ""
        text.append("\n" + escaped(error_sentence(execution.error), keep="\n"), "red")
        text.append(at, "bright_black")
    return text


def header_lines(execution: Execution) -> Iterator[str]:
    """Yield an execution's fields for a pipe, one tab-separated name and value a line."""
    parent = execution.parent_execution_id
    yield f"id\t{execution.id}"
    yield f"workflow\t{cell(execution.workflow_id)}"
    yield f"version\t{execution.version}"
    yield f"status\t{execution.status}"
    yield f"revision\t{execution.revision}"
    yield f"priority\t{execution.priority}"
    yield f"deadline_seconds\t{cell(execution.deadline_seconds)}"
    yield f"created_at\t{cell(execution.created_at)}"
    yield f"started_at\t{cell(execution.started_at)}"
    yield f"ended_at\t{cell(execution.ended_at)}"
    yield f"acknowledged_at\t{cell(execution.acknowledged_at)}"
    yield f"seconds\t{cell(seconds_between(execution.started_at, execution.ended_at))}"
    yield f"parent\t{cell(parent)}"
    node = node_name(execution.parent_node_id or "", execution.parent_item or 0) if parent else ""
    yield f"parent_node\t{cell(node)}"
    yield f"replay_of\t{cell(execution.replay_of)}"
    yield f"metadata\t{cell(execution.metadata)}"
    yield f"error\t{cell(error_sentence(execution.error))}"


def node_name(node_id: str, item: int) -> str:
    """Return the name of a node run: `price`, or `price[3]` for its third item."""
    return f"{node_id}[{item}]" if item else node_id


def _parent_of(execution: Execution, parent: Execution | None) -> str:
    workflow = "" if parent is None else f"{parent.workflow_id} v{parent.version} "
    at = node_name(execution.parent_node_id or "", execution.parent_item or 0)
    return f"{workflow}{execution.parent_execution_id} at node {at}"
