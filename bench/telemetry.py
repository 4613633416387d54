"""What traces cost: CPU time of a process per no-op node, without an SDK, with a batch exporter, with sampling off.

Four processes, each with an engine, a worker and an in-memory store of its own, take turns at a hundred chains of ten
nodes. One of them makes no spans, and stores the same line for each node: the others are compared with it, turn by
turn. The exporter sends to a receiver in this process; what it takes to encode and send counts, what it takes to
receive does not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from spanloom.engine import Node, NodeRegistry, Settings, Workflow, WorkflowEngine
from spanloom.engine.store.requests import SpanLine
from spanloom.testing.servers import redis_server
from spanloom.worker.process.log_setup import configure_logging

MODES = {  # and how many microseconds more than nothing each is meant to cost at most
    "bare": 0.0,
    "no SDK": 15.0,
    "batch exporter": 120.0,
    "sampling off": 25.0,
}
CHAINS, LENGTH = 100, 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Print medians over the rounds, with the quartiles of the differences."""
    parser = argparse.ArgumentParser(prog="bench/telemetry.py", description="Measure what traces cost per no-op node.")
    parser.add_argument("--rounds", type=int, default=40, help="how often each has its turn (default: %(default)s)")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)  # what this program starts itself with
    parser.add_argument("--redis", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.mode:
        return _play(options.mode, options.redis)
    taken: dict[str, list[float]] = {mode: [] for mode in MODES}
    with ExitStack() as stack:
        redis, endpoint = stack.enter_context(redis_server()), stack.enter_context(_receiver())
        players = {mode: stack.enter_context(_player(mode, redis.url, endpoint)) for mode in MODES}
        for _ in range(3):
            for player in players.values():
                _turn(player)
        for _ in range(options.rounds):
            for mode, player in players.items():
                taken[mode].append(_turn(player))
    print("| spans | CPU us a node | more than without spans: median | quartiles | aim |\n|---|---|---|---|---|")
    for mode, aim in MODES.items():
        median = statistics.median(taken[mode])
        if mode == "bare":
            print(f"| none are made | {median:.0f} | | | |")
            continue
        more = [one - bare for one, bare in zip(taken[mode], taken["bare"], strict=True)]
        low, middle, high = statistics.quantiles(more, n=4)
        print(f"| {mode} | {median:.0f} | {middle:+.1f} | {low:+.1f} to {high:+.1f} | {aim:.0f} |")
    print(f"\n{options.rounds} interleaved rounds of {CHAINS * LENGTH:,} nodes each, Python {sys.version.split()[0]}.")
    return 0


def _turn(player: subprocess.Popen[str]) -> float:
    assert player.stdin is not None
    assert player.stdout is not None
    player.stdin.write("go\n")
    player.stdin.flush()
    return float(json.loads(player.stdout.readline()))


@contextmanager
def _player(mode: str, redis_url: str, endpoint: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    command = [sys.executable, str(Path(__file__)), "--mode", mode, "--redis", redis_url]
    player = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield player
    finally:
        player.communicate("")


@contextmanager
def _receiver() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


# ---- in a process of its own ----


def _play(mode: str, redis_url: str) -> int:
    configure_logging("auto", logging.WARNING)
    _set_up(mode)
    registry = NodeRegistry()
    registry.register("noop", _noop)
    names = [f"n{number}" for number in range(LENGTH)]
    parents: list[tuple[str, ...]] = [(), *((name,) for name in names)]
    nodes = tuple(
        Node.model_validate({"id": name, "type": "noop", "inputs": inputs})
        for name, inputs in zip(names, parents, strict=False)
    )
    settings = Settings(namespace=mode.replace(" ", "_").lower())
    with WorkflowEngine(registry, "memory://", redis_url, settings=settings) as engine, engine.start_workers():
        engine.register_workflow(Workflow(id="chain", nodes=nodes))
        for _ in sys.stdin:
            before = time.process_time_ns()
            for execution_id in engine.enqueue_workflows("chain", [None] * CHAINS):
                engine.wait(execution_id, timeout=120)
            _flush()
            took = time.process_time_ns() - before
            print(json.dumps(took / 1000 / (CHAINS * LENGTH)), flush=True)
    return 0


def _noop() -> None:
    return None


def _flush() -> None:
    from opentelemetry import trace

    flush = getattr(trace.get_tracer_provider(), "force_flush", None)
    if flush is not None:
        flush()


def _set_up(mode: str) -> None:
    if mode == "bare":
        import spanloom.worker.node.attempt as attempts

        attempts.NodeSpan = _NoSpan  # type: ignore[assignment,misc]
    elif mode != "no SDK":
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

        provider = TracerProvider(sampler=ALWAYS_OFF if mode == "sampling off" else ALWAYS_ON)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(provider)


class _NoSpan:
    """Stands for a node's span where none is made."""

    exported = goes_on = False
    span_id, trace_id, reference = "0" * 16, "0" * 32, None

    def __init__(self, *_: Any, **__: Any) -> None:
        from opentelemetry.context import Context

        self._context = Context()

    def identity(self) -> Any:
        return self._context

    begin = identity

    def wait(self) -> Any:
        return self.end()

    def end(self, *_: Any) -> Any:
        line = _LINE[:]
        line[1] = f"{next(_NUMBERS):016x}"  # it is stored like any other
        return SpanLine(*line)


_NUMBERS = itertools.count(1)
_LINE: list[Any] = [
    "0" * 32,
    "",
    "0" * 16,
    "run n1",
    "consumer",
    "unset",
    1,
    2,
    "n1",
    0,
    1,
    json.dumps({"a": "b" * 350}),
]


if __name__ == "__main__":
    sys.exit(main())
