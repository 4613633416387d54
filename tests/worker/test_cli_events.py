"""What happens to an execution, as the command shows it: its history, then events and log lines as they come."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from spanloom.cli.commands.logs import LogTail
from spanloom.cli.exit_codes import DONE, FAILED, MISTAKE, run
from spanloom.cli.rendering import event_text
from spanloom.engine import Event, ExecutionStore, NodeContext, NodeRegistry, Workflow, WorkflowEngine
from spanloom.engine.store.requests import LogLine, StartRequest
from spanloom.stores import open_store
from spanloom.testing.workflows import single
from support.cli import APP, NEWER, NINE, OLDER, Invoke, in_terminal

pytestmark = pytest.mark.usefixtures("clean_environment")

PROMPT_SECONDS = 10.0


@pytest.mark.usefixtures("store")
class TestEvents:
    def test_a_pipe_gets_a_line_for_each_event(self, invoke: Invoke) -> None:
        rows = [line.split("\t") for line in invoke("events", OLDER).splitlines()]
        assert [len(row) for row in rows] == [8] * len(rows)
        assert [row[:5] for row in rows[:4]] == [
            ["2026-03-01T09:00:00.000Z", "execution.created", "", "0", ""],
            ["2026-03-01T09:00:00.000Z", "execution.started", "", "0", ""],
            ["2026-03-01T09:00:00.000Z", "node.queued", "n1", "0", "1"],
            ["2026-03-01T09:00:01.000Z", "node.started", "n1", "0", "1"],
        ]
        assert rows[3][5] == "w1"
        assert rows[-1][1] == "execution.failed"
        assert json.loads(rows[-1][6])["error"]["message"] == "no stock"

    def test_a_cursor_leads_on_to_what_comes_after_it(self, invoke: Invoke) -> None:
        lines = invoke("events", OLDER).splitlines()
        for position, line in enumerate(lines, 1):
            cursor = line.split("\t")[7]
            assert invoke("events", OLDER[-8:], "--after", cursor).splitlines() == lines[position:]
            assert invoke("events", OLDER, "-f", "--after", cursor).splitlines() == lines[position:]

    def test_json_has_the_fields_of_the_model(self, invoke: Invoke) -> None:
        events = [json.loads(line) for line in invoke("events", OLDER, "--json").splitlines()]
        assert [set(one) for one in events] == [set(Event.model_fields)] * len(events)
        assert [one["cursor"] for one in events] == [
            line.split("\t")[7] for line in invoke("events", OLDER).splitlines()
        ]

    def test_a_terminal_gets_a_drawing(self, sqlite_url: str) -> None:
        drawn = re.sub(r"\x1b\[[0-9;]*m", "", in_terminal(["events", OLDER, "--store", sqlite_url]))
        assert re.search(r"\d\d:\d\d:01\.000  ● started     n1  w1", drawn)
        assert re.search(r"\d\d:\d\d:02\.250  ✗ failed      n2  ValueError: no stock", drawn)
        assert re.search(r"\d\d:\d\d:02\.250  ✗ failed      execution  n2: ValueError: no stock", drawn)

    @pytest.mark.parametrize("follow", [[], ["--follow"]])
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (
                [OLDER, "--after", "x"],
                "cursor 'x' was not given out by this list",
            ),
            ([OLDER[:-1] + "0"], "no execution"),
        ],
    )
    def test_mistakes_are_named(
        self, sqlite_url: str, arguments: list[str], said: str, follow: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["events", *arguments, *follow, "--store", sqlite_url]) == MISTAKE
        assert said in capsys.readouterr().err

    def test_following_needs_no_redis_and_prints_what_comes_until_the_end(
        self, invoke: Invoke, store: ExecutionStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SPANLOOM_REDIS_URL", "redis://localhost:1")
        cancelling = threading.Timer(0.5, store.cancel_execution, [NEWER])
        cancelling.start()
        kinds = [line.split("\t")[1] for line in invoke("events", NEWER, "-f").splitlines()]
        assert kinds[0] == "execution.created"
        assert "execution.cancelled" in kinds
        cancelling.join()

    def test_what_an_event_says_can_not_steer_a_terminal(self) -> None:
        error = {"type": "x.Bad\x1b[2J", "message": "a\nb"}
        event = Event(
            cursor="1", execution_id=OLDER, kind="node.retrying", node_id="a", item=3, attempt=2, at=NINE,
            data={"error": error},
        )  # fmt: skip
        assert event_text(event).plain.endswith("↻ retrying    a[3] #2  Bad\\x1b[2J: a\\nb")


class TestWatching:
    @pytest.fixture
    def working(
        self, clean_environment: None, sqlite_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[None]:
        """The shop with a worker in this process."""
        monkeypatch.setenv("SPANLOOM_STORE_URL", sqlite_url)
        monkeypatch.setenv("SPANLOOM_REDIS_URL", redis_url)
        shop: dict[str, Any] = {"__name__": "shop"}
        exec(APP, shop)
        engine: WorkflowEngine = shop["engine"]
        with engine, engine.start_workers(1):
            yield

    @pytest.mark.usefixtures("working")
    def test_watching_prints_the_events_and_then_the_output(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert run(["run", "orders", "--input", '{"id": 7}', "--watch"]) == DONE
        *lines, output = capfd.readouterr().out.splitlines()
        events = [line.split("\t")[1:3] for line in lines if line.count("\t") == 7]
        assert events[0] == ["execution.created", ""]
        assert ["node.completed", "charge"] in events
        assert events[-1] == ["execution.completed", ""]
        assert output == '"order 7"'

    @pytest.mark.usefixtures("working")
    def test_a_failure_that_was_watched_is_told_and_counts(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert run(["run", "orders", "--input", '{"id": -1}', "--watch", "--json"]) == FAILED
        printed = capfd.readouterr()
        *events, execution = [json.loads(line) for line in printed.out.splitlines() if line.startswith("{")]
        assert [one["kind"] for one in events][-1] == "execution.failed"
        assert execution["status"] == "failed"
        assert "PermanentError: no such order" in printed.err

    @pytest.mark.usefixtures("working")
    def test_a_terminal_shows_the_lines_and_the_end(self) -> None:
        drawn = re.sub(r"\x1b\[[0-9;]*m", "", in_terminal(["run", "orders", "--input", '{"id": 7}', "--watch"]))
        found = [
            drawn.find(part) for part in ("· created", "● started     charge", "✓ completed   charge", '"order 7"')
        ]
        assert found == sorted(found)
        assert found[0] > 0

    def test_watching_no_longer_than_it_was_told(
        self, sqlite_url: str, redis_url: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = open_store(sqlite_url)
        store.open()
        store.save_workflow(single("mail"))
        store.close()
        where = ["--store", sqlite_url, "--redis", redis_url]
        assert run(["run", "mail", "--watch", "--timeout", "200ms", *where]) == FAILED
        printed = capsys.readouterr()
        assert [line.split("\t")[1] for line in printed.out.splitlines()][-1] == "node.queued"
        assert "is a worker running?" in printed.err
        assert run(["run", "mail", "--watch", "--no-wait", *where]) == MISTAKE
        assert "give either --watch or --no-wait" in capsys.readouterr().err


class TestLogs:
    def test_what_is_recorded_is_printed_at_once(
        self, sqlite_url: str, redis_url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("spanloom.cli.commands.logs._FOLLOW_SECONDS", 60.0)
        opened = threading.Event()
        registry = NodeRegistry()

        @registry.node("gated")
        def gated(ctx: NodeContext) -> None:
            ctx.log.warning("gate", n=ctx.node_id)  # the command, in the same process, logs warnings only
            opened.wait(30)

        chain = Workflow.model_validate(
            {"id": "chain", "nodes": [{"id": "a", "type": "gated"}, {"id": "b", "type": "gated", "inputs": ["a"]}]}
        )
        engine = WorkflowEngine(registry, sqlite_url, redis_url)
        with engine, engine.start_workers(1):
            engine.register_workflow(chain)
            execution_id = engine.enqueue_workflow("chain")
            timer = threading.Timer(2.0, opened.set)  # workers have seen then that somebody follows
            timer.start()
            begun = time.monotonic()
            assert run(["logs", execution_id, "-f", "--store", sqlite_url, "--redis", redis_url]) == DONE
            assert time.monotonic() - begun < PROMPT_SECONDS
            timer.join()
        lines = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
        assert [line[2] for line in lines if len(line) == 7 and line[5] == "gate"] == ["a", "b"]

    def test_a_line_that_is_committed_after_a_later_one_was_read_is_not_passed_over(self, postgres_url: str) -> None:
        store = open_store(postgres_url)
        with _opened(store):
            store.save_workflow(single("mail"))
            store.create_executions([StartRequest(NEWER, "mail", "null")])
            written, go_on = threading.Event(), threading.Event()

            def write_slowly() -> None:
                with store.transaction():
                    store.add_log(NEWER, LogLine("info", "early", NINE))
                    written.set()
                    go_on.wait(10)

            slow = threading.Thread(target=write_slowly)
            slow.start()
            written.wait(10)
            store.add_log(NEWER, LogLine("info", "late", NINE))
            tail = LogTail(store, NEWER, None)
            assert [record.message for record in tail.read()] == ["late"]
            go_on.set()
            slow.join()
            assert [record.message for record in tail.read()] == ["early"]
            assert list(tail.read()) == []

    def test_lines_are_read_once_however_many_there_are(self, sqlite_url: str) -> None:
        store = open_store(sqlite_url)
        with _opened(store):
            store.save_workflow(single("mail"))
            store.create_executions([StartRequest(NEWER, "mail", "null")])
            tail = LogTail(store, NEWER, None)
            read: list[str] = []
            for first in range(0, 2500, 500):
                with store.transaction():
                    for number in range(first, first + 500):
                        store.add_log(NEWER, LogLine("info", str(number), NINE))
                read += [record.message for record in tail.read()]
            assert read == [str(number) for number in range(2500)]
            assert list(tail.read()) == []


@contextmanager
def _opened(store: ExecutionStore) -> Iterator[None]:
    store.open()
    try:
        yield
    finally:
        store.close()
