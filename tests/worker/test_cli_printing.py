"""What commands print: nothing that controls a terminal, and in any encoding, whatever users' data holds."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import spanloom.cli
from spanloom.cli.exit_codes import DONE, run
from spanloom.engine import ExecutionStore, Node, Workflow
from spanloom.engine.store.requests import Claim, LogLine, NodeKey, Outcome, RecordRequest, SpanLine, StartRequest
from support.cli import NINE_NS, OLDER, TRACE_ID, at

pytestmark = pytest.mark.usefixtures("clean_environment", "store")

#: A sequence that clears the screen, markup, a link, an end of line, and what reorders or hides its neighbours.
TEXT = "é日\x1b[2J\x9b31m[/][red]:smile:\x1b]8;;http://x\x07\r\n\t\x7f\u202eab\u2066\u200b\u2028\ufeff"
DATA = TEXT + "\udce9\ud83d"  # as JSON's escapes any store holds half a pair as well
ODD = "019cb2f4-5555-7abc-8def-0a0b0c0d0e0f"
DONE_ID = "019cb2f4-6666-7abc-8def-0a0b0c0d0e0f"
KEY = "once"
#: Colours, and what the spinner of `run` moves the cursor with.
_STYLE = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\r?\x1b\[(1A|2K)")


def _deep(levels: int) -> Any:
    value: Any = DATA
    for _ in range(levels):
        value = [value]
    return value


INPUT = json.dumps({DATA: _deep(400)}, separators=(",", ":"))


@pytest.fixture(autouse=True)
def odd_store(store: ExecutionStore) -> None:
    """Beside what others have, executions whose data, error, logs, spans, metadata and worker are odd."""
    workflow = Workflow(id="odd", name=TEXT, nodes=[Node(id="only", type="t")])
    store.save_workflow(workflow, change_notes=TEXT, created_by=TEXT)
    store.register_worker("w\x1b", name=TEXT, host=TEXT, pid=1, queues=["a[/]b", TEXT], lease_seconds=1e9, now=at(0))
    error = json.dumps({"type": f"x.{DATA}", "message": DATA, "traceback": DATA, "node_id": DATA})
    fields = json.dumps({DATA: {DATA: DATA}, "deep": _deep(400)})
    for execution_id, outcome, result in (
        (ODD, Outcome.FAILED, {"error": error}),
        (DONE_ID, Outcome.COMPLETED, {"data": json.dumps({DATA: [DATA, _deep(400)]})}),
    ):
        request = StartRequest(
            execution_id, "odd", INPUT, metadata={TEXT: TEXT},
            idempotency_key=KEY if outcome is Outcome.COMPLETED else None,
            input_hash=hashlib.sha256(INPUT.encode()).hexdigest(),
        )  # fmt: skip
        store.create_executions([request], now=at(5))
        (claim,) = store.claim([NodeKey(execution_id, "only")], worker_id="w\x1b", now=at(6))
        assert isinstance(claim, Claim)
        span = SpanLine(TRACE_ID, "c" * 16, None, TEXT, "consumer", "error", NINE_NS, NINE_NS, attributes=fields)
        record = RecordRequest(
            execution_id, "only", 0, claim.node.fence, "w\x1b", outcome, spans=[span],
            logs=[LogLine("info", TEXT, at(6), fields), LogLine(TEXT, "level", at(6))], **result,
        )  # fmt: skip
        assert store.record([record], now=at(7))[0].recorded


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


Printed = Callable[..., str]


@pytest.fixture(params=["utf-8", "ascii", "latin-1", "terminal"])
def printed(request: pytest.FixtureRequest, sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Printed:
    """Run a command with a standard output that is strict; return what it printed, after checking each character."""
    encoding = "utf-8" if request.param == "terminal" else request.param
    kind = _Terminal if request.param == "terminal" else io.TextIOWrapper
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")

    def printed(*arguments: str, code: int = DONE) -> str:
        out, error = (kind(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", error)
            assert run([*arguments, "--store", sqlite_url]) == code
        texts = []
        for stream in (out, error):
            stream.flush()
            buffer = stream.buffer
            assert isinstance(buffer, io.BytesIO)
            texts.append(_STYLE.sub("", buffer.getvalue().decode(encoding)))
        for text in texts:
            odd = {char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
            assert odd <= {"\n", "\t"}, odd
        return texts[0]

    return printed


READS = [
    ("list",),
    ("dead-letters",),
    ("show", ODD),
    ("show", DONE_ID),
    ("show", ODD, "--attempts", "only"),
    ("events", ODD),
    ("logs", ODD),
    ("trace", ODD),
    ("workflows",),
    ("workflows", "odd"),
    ("stats",),
]


def test_what_is_read_is_escaped_in_every_encoding(printed: Printed) -> None:
    for command in READS:
        shown = printed(*command)

        if command[0] in ("list", "dead-letters"):
            assert ODD in shown
            assert OLDER in shown  # one odd row hides no other one
        assert "\\x1b[2J" in shown or "\\u001b[2J" in shown, command


def test_json_is_json_in_every_encoding_and_holds_the_same_values(printed: Printed) -> None:
    for command in READS:
        lines = printed(*command, "--json").splitlines()
        documents = [json.loads(line) for line in lines]

        assert {DATA, TEXT} & set(_strings(documents)), command


def _strings(value: Any) -> Iterator[str]:
    pending = [value]
    while pending:
        element = pending.pop()
        if isinstance(element, str):
            yield element
        elif isinstance(element, dict):
            pending += [*element, *element.values()]
        elif isinstance(element, list):
            pending += element


def test_an_output_that_is_run_for_is_escaped_json(printed: Printed, redis_url: str) -> None:
    output = json.loads(printed("run", "odd", "--input", INPUT, "--key", KEY, "--redis", redis_url))
    assert output == {DATA: [DATA, _deep(400)]}


def test_dry_runs_of_what_changes_print_it_escaped(printed: Printed, redis_url: str) -> None:
    for verb in ("cancel", "retry", "acknowledge", "replay", "purge"):
        which = ("--older-than", "0") if verb == "purge" else ("--all",)
        printed(verb, *which, "--dry-run", "--redis", redis_url)
        printed(verb, *which, "--dry-run", "--json", "--redis", redis_url)


def test_a_mistake_is_answered_in_escaped_lines(printed: Printed) -> None:
    mistakes = (
        ("show", TEXT + "x" * 6),
        ("show", ODD, "--attempts", f"{TEXT.replace(':', '')}"),
        ("list", "--metadata", TEXT),
        ("list", "--since", DATA),
        ("workflows", TEXT),
        ("workflows", "--cursor", DATA),
        ("events", ODD, "--after", DATA),
        ("logs", DATA),
    )
    for arguments in mistakes:
        printed(*arguments, code=2)


def test_a_reader_that_has_left_is_no_error(sqlite_url: str) -> None:
    code = f"import sys; from spanloom.cli.exit_codes import run; sys.exit(run(['list', '--store', {sqlite_url!r}]))"
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writing)
    assert done.stderr == b""


# ---- no module of the command line prints in another way ----

_CLI = Path(next(iter(spanloom.cli.__path__)))
_PRINTS = {"echo", "secho", "print", "write", "writelines", "Console", "print_exception", "print_exc", "pprint"}
_WIRED = {
    "output.py": {"echo", "print"},  # the output itself
}


def test_no_module_of_the_command_line_prints_but_the_output() -> None:
    found = []
    for path in _CLI.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call):
                continue
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            if name in _PRINTS - _WIRED.get(str(path.relative_to(_CLI)), set()):
                found.append(f"{path.relative_to(_CLI)}:{call.lineno} {name}")

    assert not found
