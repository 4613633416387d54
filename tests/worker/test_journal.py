"""What handlers say other than by ctx.log is kept with their nodes, and nothing that others say."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import structlog
from fakeredis import FakeRedis, FakeServer
from opentelemetry import _logs as otel_logs
from opentelemetry import trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

from spanloom.engine import Node, NodeContext, NodeRegistry, Workflow, WorkflowEngine
from spanloom.engine.limits import MAX_LINE_CHARACTERS
from spanloom.engine.store.models import LogRecord
from spanloom.stores import InMemoryExecutionStore
from spanloom.worker.process.log_setup import configure_logging

library = logging.getLogger("some.library")
Run = Callable[..., list[LogRecord]]


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Talkative:
    def __str__(self) -> str:
        library.warning("asked")
        return "talkative"


@pytest.fixture
def run() -> Run:
    """Run handlers, each as a node, and return what is kept of what they said."""

    def run(*handlers: Callable[..., Any], timeout: float | None = None, **options: Any) -> list[LogRecord]:
        registry = NodeRegistry()
        for handler in handlers:
            registry.node(handler.__name__)(handler)
        engine = WorkflowEngine(registry, InMemoryExecutionStore(), FakeRedis(server=FakeServer()))
        nodes = [Node(id=handler.__name__, type=handler.__name__, timeout=timeout) for handler in handlers]
        engine.register_workflow(Workflow(id="w", nodes=tuple(nodes)))
        with engine, engine.start_workers(1, **options):
            execution_id = engine.enqueue_workflow("w")
            engine.wait(execution_id, timeout=30)
            found = engine.store.get_logs(execution_id)
            while (
                found and len(found) % 1000 == 0 and (more := engine.store.get_logs(execution_id, after=found[-1].id))
            ):
                found += more
            return found

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(io.StringIO()))
    return run


def messages(lines: list[LogRecord]) -> list[str]:
    return [line.message for line in lines]


@pytest.mark.parametrize("timeout", [None, 30])
def test_a_librarys_line_is_kept_with_its_level_logger_extra_fields_and_traceback(
    run: Run, timeout: float | None
) -> None:
    def handler(ctx: NodeContext) -> None:
        try:
            {}["gone"]
        except KeyError:
            library.exception("failed for %d", 7, extra={"order": 3})

    (line,) = run(handler, timeout=timeout)

    assert (line.level, line.message, line.node_id, line.attempt) == ("error", "failed for 7", "handler", 1)
    assert {key: value for key, value in line.fields.items() if key != "exception"} == {
        "order": 3,
        "logger": "some.library",
    }
    assert line.fields["exception"].endswith("KeyError: 'gone'\n")
    assert '{}["gone"]' in line.fields["exception"]


def test_the_level_from_which_lines_are_kept_is_an_option(run: Run) -> None:
    def handler(ctx: NodeContext) -> None:
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
            library.log(level, "%s", logging.getLevelName(level))

    logging.getLogger().setLevel(logging.DEBUG)

    assert messages(run(handler)) == ["INFO", "WARNING", "ERROR", "CRITICAL"]
    assert messages(run(handler, log_level="debug")) == ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
    assert [line.level for line in run(handler, log_level="error")] == ["error", "critical"]


def test_a_handlers_own_field_may_have_the_name_of_an_id(run: Run) -> None:
    def handler(ctx: NodeContext) -> None:
        ctx.log.info("sold", item="book", attempt=7, order=3)

    (line,) = run(handler)

    assert line.fields == {"item": "book", "attempt": 7, "order": 3}


def test_what_is_said_outside_of_handlers_or_by_our_own_code_is_not_kept(run: Run) -> None:
    def handler(ctx: NodeContext) -> None:
        thread = threading.Thread(target=library.warning, args=["a thread of its own"])
        thread.start()
        thread.join()
        for ours in ("spanloom.worker", "spanloom", "rq.worker", "opentelemetry.sdk"):
            logging.getLogger(ours).warning("ours")
        library.warning("the handler")

    assert messages(run(handler)) == ["the handler"]


def test_handlers_that_run_at_once_on_one_loop_keep_each_its_own_lines(run: Run) -> None:
    def talker(name: str) -> Callable[[NodeContext], Any]:
        async def handler(ctx: NodeContext) -> None:
            for number in range(20):
                library.warning("%s %d", name, number)
                await asyncio.sleep(0)
            await asyncio.to_thread(library.warning, "%s in a thread", name)
            await asyncio.gather(*(_later(f"{name} in a task") for _ in range(2)))

        handler.__name__ = name
        return handler

    async def _later(message: str) -> None:
        await asyncio.sleep(0)
        library.warning(message)

    lines = run(*(talker(f"n{number}") for number in range(3)))

    for name in ("n0", "n1", "n2"):
        own = messages([line for line in lines if line.node_id == name])
        assert own == [*(f"{name} {n}" for n in range(20)), f"{name} in a thread", *[f"{name} in a task"] * 2]


def test_several_workers_of_a_process_keep_a_line_once(run: Run) -> None:
    def handler(ctx: NodeContext) -> None:
        def inner(ctx: NodeContext) -> None:
            library.warning("inner")

        with ThreadPoolExecutor(1) as pool:  # a whole second system, while this one runs
            assert messages(pool.submit(run, inner).result()) == ["inner"]
        library.warning("outer")

    assert messages(run(handler)) == ["outer"]


def test_odd_lines_neither_fail_a_handler_nor_the_record(run: Run) -> None:
    reached = []

    def handler(ctx: NodeContext) -> None:
        library.warning("%d", "no number")
        library.warning(Unspeakable())
        library.warning("%s", Talkative())
        library.warning("extra", extra={"what": Unspeakable(), "id": {1, 2}})
        ctx.log.info("zero \x00 and half a \ud800 pair", value="\x00\ud800")
        ctx.log.info("x" * 50_000, big="y" * 50_000)
        ctx.log.info("unspeakable", value=Unspeakable())
        loop: dict[str, Any] = {}
        loop["self"] = loop
        ctx.log.info("endless", loop=loop, key={(1, 2): 3})
        ctx.log.info("error", exc_info=ValueError("handed over"))
        reached.append(True)

    logging.getLogger().handlers.clear()  # pytest's own, which fails on a bad line
    with _quiet():
        lines = [line for line in run(handler) if line.message != "asked"]  # by whoever else formats the line

    assert reached == [True]
    assert messages(lines)[0] == "%d ('no number',)"
    assert "can't be read" in messages(lines)[1]
    assert messages(lines)[2:4] == ["talkative", "extra"]
    assert messages(lines)[4] == "zero \ufffd and half a \ufffd pair"
    assert lines[4].fields == {"value": "\x00\ud800"}
    assert len(lines[5].message) == MAX_LINE_CHARACTERS
    assert lines[5].fields["left_out"] == ["big"]
    assert messages(lines)[6:] == ["unspeakable", "endless", "error"]
    assert "ValueError: handed over" in lines[8].fields["exception"]


@contextmanager
def _quiet() -> Iterator[None]:
    raising, logging.raiseExceptions = logging.raiseExceptions, False
    yield
    logging.raiseExceptions = raising


def test_a_warning_that_nobody_else_hears_is_still_shown_while_a_worker_runs(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger().handlers.clear()  # pytest's own; they are put back

    def handler(ctx: NodeContext) -> None:
        library.warning("nobody has configured logging")
        library.info("and this is not shown then")

    assert messages(run(handler)) == ["nobody has configured logging"]
    assert capsys.readouterr().err.count("nobody has configured logging") == 1
    assert logging.getLogger().handlers == []


def test_a_handler_that_says_something_all_the_time_is_still_timed_out(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    logging.getLogger().handlers.clear()  # pytest's own, which swallow what interrupts them
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # a timeout that a finalizer drops comes again
    configure_logging("json")

    def handler(ctx: NodeContext) -> None:
        while True:
            ctx.log.info("on and on", value=object())
            library.warning("and on")

    lines = run(handler, timeout=0.3)

    assert any(message.startswith("NodeTimeout: ") for message in messages(lines))
    assert {"on and on", "and on"} < set(messages(lines))


@pytest.mark.parametrize("change", ["basicConfig", "removed", "replaced", "factory"])
def test_lines_are_kept_whatever_a_handler_does_to_the_root_logger(run: Run, change: str) -> None:
    root = logging.getLogger()
    before, level, factory = list(root.handlers), root.level, logging.getLogRecordFactory()

    def changes() -> None:
        if change == "basicConfig":
            logging.basicConfig(force=True, handlers=[logging.NullHandler()])
        elif change == "removed":
            for handler in list(root.handlers):
                root.removeHandler(handler)
        elif change == "replaced":
            root.handlers = [logging.NullHandler()]
        else:
            logging.setLogRecordFactory(logging.LogRecord)
            logging.basicConfig(force=True)
        library.warning("in this node" if change != "factory" else "")

    def later() -> None:
        library.warning("in a later node")

    try:
        kept = {*messages(run(changes, later, concurrency=1))}
    finally:
        root.handlers, root.level = before, level
        made = logging.getLogRecordFactory()
        logging.setLogRecordFactory(factory)
    assert kept - {""} == {"in a later node"} | ({"in this node"} if change != "factory" else set())
    assert made is logging.LogRecord


def test_what_a_handler_leaves_in_its_context_does_not_reach_the_next_node(run: Run) -> None:
    seen = []

    def first(ctx: NodeContext) -> None:
        seen.append(structlog.contextvars.get_contextvars())
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(left="behind")

    def second(ctx: NodeContext) -> None:
        seen.append(structlog.contextvars.get_contextvars())

    run(first, second, concurrency=1)

    assert [one["node_id"] for one in seen] == ["first", "second"]
    assert [set(one) for one in seen] == [{"execution_id", "node_id", "attempt", "trace_id", "span_id"}] * 2


# ---- what is printed ----


def test_what_handlers_print_goes_where_it_went_and_is_kept(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    logging.getLogger().addHandler(logging.StreamHandler(sys.stderr))

    def printing(ctx: NodeContext) -> None:
        print("out", 1)
        print("err", file=sys.stderr)
        handler = logging.StreamHandler(sys.stderr)  # it writes to what listens
        library.addHandler(handler)
        library.warning("logged")
        library.removeHandler(handler)
        print("10 %\r50 %\r100 %")
        print("no end", end="")
        thread = threading.Thread(target=print, args=["not the handler's"])
        thread.start()
        thread.join()

    lines = run(printing, capture_output=True)

    assert [(line.level, line.message) for line in lines] == [
        ("info", "out 1"),
        ("warning", "err"),
        ("warning", "logged"),
        ("info", "100 %"),
        ("info", "no end"),
    ]
    assert lines[0].fields == {"stream": "stdout"}
    assert (sys.stdout, sys.stderr) == before
    printed = capsys.readouterr()
    assert printed.out == "out 1\n10 %\r50 %\r100 %\nno endnot the handler's\n"
    assert "err\n" in printed.err


def test_what_handlers_print_is_not_kept_unless_that_is_wanted(run: Run) -> None:
    def printing(ctx: NodeContext) -> None:
        print("out")

    assert run(printing) == []


# ---- the logs signal ----


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryLogRecordExporter]:
    """A logger provider that is set up; the real one can be set once in a process."""
    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    monkeypatch.setattr(otel_logs, "get_logger_provider", lambda: provider)
    yield exporter
    provider.shutdown()


def test_lines_are_emitted_in_their_trace_where_the_logs_signal_is_set_up(
    run: Run, exported: InMemoryLogRecordExporter
) -> None:
    def handler(ctx: NodeContext) -> None:
        ctx.log.info("by ctx.log", order=3)
        with ctx.span("inner"):
            library.error("by a library")

    lines = run(handler)

    emitted = [one.log_record for one in exported.get_finished_logs()]
    assert [(one.body, one.severity_text) for one in emitted] == [("by ctx.log", "INFO"), ("by a library", "ERROR")]
    assert [one.severity_number and one.severity_number.value for one in emitted] == [9, 17]
    assert [(f"{one.trace_id:032x}", f"{one.span_id:016x}") for one in emitted] == [
        (line.trace_id, line.span_id) for line in lines
    ]
    assert lines[0].span_id != lines[1].span_id
    attributes = dict(emitted[0].attributes or {})
    assert attributes.pop("spanloom.execution.id") == lines[0].execution_id
    assert attributes == {
        "spanloom.workflow.id": "w",
        "spanloom.node.id": "handler",
        "spanloom.node.item": 0,
        "spanloom.node.attempt": 1,
        "order": 3,
    }


def test_a_line_that_opentelemetrys_own_handler_hears_is_emitted_by_it_alone(
    run: Run, exported: InMemoryLogRecordExporter
) -> None:
    class LoggingHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            pass

    LoggingHandler.__module__ = "opentelemetry.instrumentation.logging.handler"
    theirs = LoggingHandler()
    logging.getLogger().addHandler(theirs)

    def handler(ctx: NodeContext) -> None:
        library.warning("heard")
        ctx.log.info("not heard")

    assert messages(run(handler)) == ["heard", "not heard"]
    assert [one.log_record.body for one in exported.get_finished_logs()] == ["not heard"]


def test_an_exporter_that_fails_and_logs_neither_fails_a_handler_nor_goes_round(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def get_logger(self, *_: Any) -> Any:
            return self

        def emit(self, **_: Any) -> None:
            library.warning("the exporter says")
            raise OSError("no collector")

    monkeypatch.setattr(otel_logs, "get_logger_provider", Failing)

    def handler(ctx: NodeContext) -> None:
        ctx.log.info("a")
        library.warning("b")

    assert messages(run(handler)) == ["a", "b"]
    assert not trace.get_current_span().get_span_context().is_valid
