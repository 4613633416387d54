"""Read models as rich renderables for a terminal and as plain, stable lines for a pipe."""

from __future__ import annotations

from spanloom.cli.rendering.attempts import attempt_lines, attempts_text
from spanloom.cli.rendering.events import event_line, event_text
from spanloom.cli.rendering.family import Family, read_family
from spanloom.cli.rendering.header import execution_header
from spanloom.cli.rendering.items import Items, items_lines, items_table
from spanloom.cli.rendering.snapshot import Snapshot, read_snapshot
from spanloom.cli.rendering.tables import (
    dead_lines,
    dead_table,
    execution_row_lines,
    executions_table,
    log_line,
    log_text,
    stats_lines,
    stats_table,
    version_lines,
    versions_table,
    workflow_lines,
    workflows_table,
)
from spanloom.cli.rendering.tree import execution_lines, execution_tree
from spanloom.cli.rendering.waterfall import waterfall, waterfall_lines

__all__ = [
    "Family",
    "Items",
    "Snapshot",
    "attempt_lines",
    "attempts_text",
    "dead_lines",
    "dead_table",
    "event_line",
    "event_text",
    "execution_header",
    "execution_lines",
    "execution_row_lines",
    "execution_tree",
    "executions_table",
    "items_lines",
    "items_table",
    "log_line",
    "log_text",
    "read_family",
    "read_snapshot",
    "stats_lines",
    "stats_table",
    "version_lines",
    "versions_table",
    "waterfall",
    "waterfall_lines",
    "workflow_lines",
    "workflows_table",
]
