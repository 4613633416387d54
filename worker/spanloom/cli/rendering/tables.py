"""Tables and lines for terminals and for pipes: executions, workflows, versions, counts, log lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from spanloom.cli.rendering.values import (
    GLYPHS,
    STYLES,
    ago,
    cell,
    duration,
    error_kind,
    error_sentence,
    seconds_between,
)
from spanloom.engine.escaping import escaped
from spanloom.engine.store.models import Execution, LogRecord, StoreStats, WorkflowSummary, WorkflowVersion
from spanloom.engine.store.requests import WorkerLease

__all__ = [
    "dead_lines",
    "dead_table",
    "execution_row_lines",
    "executions_table",
    "log_line",
    "log_text",
    "stats_lines",
    "stats_table",
    "version_lines",
    "versions_table",
    "workflow_lines",
    "workflows_table",
]

_ELASTIC = {"workflow": 60, "name": 60, "metadata": 200, "notes": 200, "queues": 60, "error": 100}
_ERROR = 200  # the most characters of an error in a list; `show` has the whole
_TELLING = 8  # the last digits of a UUIDv7 distinguish executions; the first ones are the time


def executions_table(executions: Sequence[Execution], now: datetime) -> RenderableType:
    """Draw executions, one a row, newest first as they come."""
    nested = any(execution.parent_execution_id for execution in executions)
    parent_heading = ("child of",) if nested else ()
    table = _table("execution", "workflow", "status", "created", "took", *parent_heading, "metadata")
    for execution in executions:
        took = seconds_between(execution.started_at, execution.ended_at or now)
        below = "↳ " if execution.parent_execution_id else ""
        parent = (Text((execution.parent_execution_id or "")[-_TELLING:], "bright_black"),) if nested else ()
        table.add_row(
            _id(execution),
            Text(f"{below}{execution.workflow_id} v{execution.version}", no_wrap=True, overflow="ellipsis"),
            _status(execution.status),
            ago(execution.created_at, now),
            "" if took is None else duration(took),
            *parent,
            _metadata(execution),
        )
    return table


def execution_row_lines(executions: Sequence[Execution]) -> Iterator[str]:
    """Yield executions for a pipe: id, workflow, version, status, created, started, ended, parent, metadata."""
    for execution in executions:
        yield _line(
            execution.id,
            execution.workflow_id,
            execution.version,
            execution.status,
            execution.created_at,
            execution.started_at,
            execution.ended_at,
            execution.parent_execution_id,
            execution.metadata,
        )


def dead_table(executions: Sequence[Execution], now: datetime) -> RenderableType:
    """Draw failed executions with node and error, one a row."""
    table = _table("execution", "workflow", "failed", "node", "error", "metadata")
    for execution in executions:
        error = execution.error or {}
        sentence = escaped(error_sentence(execution.error))
        table.add_row(
            _id(execution),
            Text(f"{execution.workflow_id} v{execution.version}", no_wrap=True, overflow="ellipsis"),
            ago(execution.ended_at, now) if execution.ended_at else "",
            str(error.get("node_id") or ""),
            Text(sentence if len(sentence) <= _ERROR else f"{sentence[: _ERROR - 1]}…", "red", overflow="fold"),
            _metadata(execution),
        )
    return table


def dead_lines(executions: Sequence[Execution]) -> Iterator[str]:
    """Yield them for a pipe: id, workflow, version, failed, node, type of error, message, metadata, acknowledged."""
    for execution in executions:
        error = execution.error or {}
        yield _line(
            execution.id,
            execution.workflow_id,
            execution.version,
            execution.ended_at,
            error.get("node_id"),
            error_kind(error) if error else None,
            error.get("message"),
            execution.metadata,
            execution.acknowledged_at,
        )


def workflows_table(workflows: Sequence[WorkflowSummary], now: datetime) -> RenderableType:
    """Draw workflows, one a row."""
    table = _table("workflow", "name", "latest", "state", "updated")
    for workflow in workflows:
        state = Text("active", "green") if workflow.active else Text("deactivated", "yellow")
        name = Text(escaped(workflow.name))
        table.add_row(
            Text(workflow.id, "bold"), name, f"v{workflow.latest_version}", state, ago(workflow.updated_at, now)
        )
    return table


def workflow_lines(workflows: Sequence[WorkflowSummary]) -> Iterator[str]:
    """Yield workflows for a pipe: id, name, latest version, active or deactivated, created, updated."""
    for workflow in workflows:
        state = "active" if workflow.active else "deactivated"
        yield _line(
            workflow.id, workflow.name, workflow.latest_version, state, workflow.created_at, workflow.updated_at
        )


def versions_table(versions: Sequence[WorkflowVersion], now: datetime) -> RenderableType:
    """Draw the versions of one workflow, one a row."""
    table = _table("version", "nodes", "registered", "by", "notes")
    for version in versions:
        by, notes = Text(escaped(version.created_by or "")), Text(escaped(version.change_notes or ""))
        table.add_row(
            Text(f"v{version.version}", "bold"),
            f"{len(version.definition.nodes):,}",
            ago(version.created_at, now),
            by,
            notes,
        )
    return table


def version_lines(versions: Sequence[WorkflowVersion]) -> Iterator[str]:
    """Yield versions for a pipe: workflow, version, name, number of nodes, registered, by, notes."""
    for version in versions:
        nodes = len(version.definition.nodes)
        yield _line(
            version.workflow_id,
            version.version,
            version.name,
            nodes,
            version.created_at,
            version.created_by,
            version.change_notes,
        )


def stats_table(stats: StoreStats, workers: Sequence[WorkerLease], now: datetime) -> RenderableType:
    """Draw the counts of a store, and its live workers."""
    counts = _table("", "")
    counts.show_header = False
    counts.add_row("workflows", f"{stats.workflows:,}")
    for what, by_status in (("executions", stats.executions), ("open node runs", stats.open_node_runs)):
        present = [Text(f"{count:,} {status}", STYLES.get(status, "")) for status, count in by_status.items() if count]
        counts.add_row(what, Text("   ").join(present) if present else Text("none", "bright_black"))
    if stats.oldest_queued_seconds is not None:
        counts.add_row("oldest queued", f"since {duration(stats.oldest_queued_seconds)}")
    if not workers:
        counts.add_row("workers", Text("none is running", "yellow"))
        return counts
    table = _table("worker", "host", "pid", "queues", "running", "started")
    for worker in workers:
        queues = ",".join(worker.queues)
        table.add_row(
            worker.name, worker.host, str(worker.pid), queues, f"{worker.running:,}", ago(worker.started_at, now)
        )
    return Group(counts, Text(), table)


def stats_lines(stats: StoreStats, workers: Sequence[WorkerLease]) -> Iterator[str]:
    """Yield counts for a pipe as name and value, then one line a worker: `worker`, name, host, pid, queues, running."""
    yield _line("workflows", stats.workflows)
    for status, count in stats.executions.items():
        yield _line(f"executions.{status}", count)
    for node_status, count in stats.open_node_runs.items():
        yield _line(f"open_node_runs.{node_status}", count)
    yield _line("oldest_queued_seconds", stats.oldest_queued_seconds)
    yield _line("workers", stats.workers)
    for worker in workers:
        yield _line("worker", worker.name, worker.host, worker.pid, ",".join(worker.queues), worker.running)


def log_text(record: LogRecord) -> Text:
    """Draw one log line for a terminal."""
    clock = record.at.astimezone().strftime("%H:%M:%S.") + f"{record.at.microsecond // 1000:03}"
    text = Text.assemble((clock, "bright_black"))
    text.append(f"  {record.level:<8}  ", STYLES.get(record.level, ""))
    text.append(f"{_where(record)}  ", "bold" if record.node_id else "")
    text.append(escaped(record.message, keep="\n"))
    for key, value in record.fields.items():
        text.append(f"  {escaped(key)}=", "bright_black")
        text.append(cell(value), "bright_black")
    return text


def log_line(record: LogRecord) -> str:
    """Return one log line for a pipe: time, level, node, item, attempt, message, fields as JSON."""
    return _line(record.at, record.level, record.node_id, record.item, record.attempt, record.message, record.fields)


def _where(record: LogRecord) -> str:
    if record.node_id is None:
        return "-"
    item = f"[{record.item}]" if record.item else ""
    return f"{record.node_id}{item}" + (f" #{record.attempt}" if record.attempt > 1 else "")


def _line(*values: object) -> str:
    return "\t".join(map(cell, values))


def _id(execution: Execution) -> Text:
    return Text.assemble((execution.id[:-_TELLING], "bright_black"), execution.id[-_TELLING:])


def _metadata(execution: Execution) -> Text:
    pairs = (f"{escaped(key)}={escaped(value)}" for key, value in execution.metadata.items())
    return Text("  ".join(pairs), "bright_black")


def _status(status: str) -> Text:
    return Text(f"{GLYPHS[status]} {status}", STYLES.get(status, ""))


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bright_black")
    for heading in headings:
        # In a narrow terminal names and notes are cut, with a mark; ids, which are copied, and short words are not.
        table.add_column(heading, no_wrap=heading not in _ELASTIC, overflow="ellipsis", max_width=_ELASTIC.get(heading))
    return table
