"""`make pictures`: draws docs/images/demo.svg, a terminal after `make demo`, from a recorded run of it.

The record, docs/images/demo.json, makes the picture the same at each call: it changes with what the command draws.
`make pictures ARGS="--record sqlite:///.demo/census.db"` takes the newest census of a store as the record first.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from spanloom.cli.rendering import Family, Snapshot, execution_tree, read_family, read_snapshot, waterfall
from spanloom.engine import Execution, ExecutionFilter, ExecutionStatus, NodeRun, Workflow
from spanloom.engine.store.models import SpanRecord
from spanloom.stores import open_store

IMAGES = Path(__file__).parent / "images"
WIDTH = 110  # columns
SIBLINGS = 8  # spans below one parent: the picture is to fit a page


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the picture, from a new record if one is wanted, and return the exit code."""
    parser = argparse.ArgumentParser(prog="docs/pictures.py", description="Draw the pictures of the documentation.")
    parser.add_argument("--record", metavar="URL", help="take the newest completed census of this store first")
    options = parser.parse_args(arguments)
    record = IMAGES / "demo.json"
    if options.record:
        record.write_text(recorded(options.record), encoding="utf-8")
    (IMAGES / "demo.svg").write_text(drawn(*played(record.read_text(encoding="utf-8"))), encoding="utf-8")
    return 0


def recorded(store_url: str) -> str:
    """Return a record of the newest completed census in a store, without the data of its nodes and their logs."""
    store = open_store(store_url)
    try:
        wanted = ExecutionFilter(workflow_id="census", status=ExecutionStatus.COMPLETED)
        if not (found := store.list_executions(wanted, limit=1).items):
            raise SystemExit(f"{store_url} has no completed census; run `make demo` first")
        snapshot, family = read_snapshot(store, found[0]), read_family(store, found[0])
    finally:
        store.close()
    spans = [span.model_copy(update={"attributes": {}, "links": []}) for span in family.spans]
    whole = {"snapshot": _as_json(snapshot), "spans": [_lean(span) for span in spans]}
    return "".join(_lines(whole)) + "\n"


def played(record: str) -> tuple[Snapshot, Family]:
    """Return what a record holds."""
    whole = json.loads(record)
    snapshot = _from_json(whole["snapshot"])
    spans = tuple(SpanRecord.model_validate(one) for one in whole["spans"])
    return snapshot, Family(tuple(_executions(snapshot)), spans)


def drawn(snapshot: Snapshot, family: Family) -> str:
    """Return the terminal's picture as SVG."""
    screen = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    bars = waterfall(
        family.spans,
        width=WIDTH,
        now_ns=max(span.end_ns or 0 for span in family.spans),
        family=family.executions,
        siblings=SIBLINGS,
    )
    screen.print(Rule("what became of its nodes"), execution_tree(snapshot), Text(), sep="\n")
    screen.print(Rule("where the time went"), bars, sep="\n")
    picture = screen.export_svg(title="make demo", unique_id="demo")
    return "\n".join(line.rstrip() for line in picture.splitlines()) + "\n"


def _as_json(snapshot: Snapshot) -> dict[str, Any]:
    assert snapshot.workflow is not None, "the nodes of all its executions are drawn"
    return {
        "execution": _lean(snapshot.execution.model_copy(update={"input": None, "output": None})),
        "workflow": _lean(snapshot.workflow),
        "runs": [_lean(run.model_copy(update={"data": None, "error": None})) for run in snapshot.runs],
        "totals": dict(snapshot.totals),
        "children": [[*key, [_as_json(one) for one in some]] for key, some in snapshot.children.items()],
    }


def _from_json(known: dict[str, Any]) -> Snapshot:
    execution = Execution.model_validate(known["execution"])
    assert execution.ended_at is not None, "only what has ended is recorded"
    return Snapshot(
        execution,
        Workflow.model_validate(known["workflow"]),
        tuple(NodeRun.model_validate(run) for run in known["runs"]),
        execution.ended_at,  # as the demo draws it: at its end
        {(node_id, item): tuple(map(_from_json, some)) for node_id, item, some in known["children"]},
        known["totals"],
    )


def _executions(snapshot: Snapshot) -> list[Execution]:
    below = [one for some in snapshot.children.values() for child in some for one in _executions(child)]
    return [snapshot.execution, *below]


def _lean(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json", exclude_defaults=True)


def _lines(value: Any, indent: str = "") -> list[str]:
    """Return JSON with one line for each element of a list, which a diff can show."""
    match value:
        case {} if value and any(isinstance(one, dict | list) for one in value.values()):
            rows = [(f"{json.dumps(name)}: ", one) for name, one in value.items()]
            opening, closing = "{}"
        case [dict(), *_]:
            rows, opening, closing = [("", one) for one in value], "[", "]"
        case _:
            return [json.dumps(value, ensure_ascii=False)]
    inner = indent + " "
    lines = [opening]
    for place, (name, one) in enumerate(rows):
        lines += ["," if place else "", "\n", inner, name, *_lines(one, inner)]
    return [*lines, "\n", indent, closing]


if __name__ == "__main__":
    sys.exit(main())
