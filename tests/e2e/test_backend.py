"""A real tracing backend, run by `make e2e`: an execution is sent there, and read back through its own API."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e.support.harness import System, worker_processes

pytestmark = pytest.mark.backend
START_SECONDS = 120


@dataclass
class Phoenix:
    """A Phoenix that runs, with its ports for HTTP, where its API is too, and for gRPC."""

    http: int
    grpc: int

    def endpoint(self, protocol: str) -> str:
        return f"http://127.0.0.1:{self.grpc if protocol == 'grpc' else self.http}"

    def spans(self, trace_id: str) -> list[dict[str, Any]]:
        """Ask for the spans of a trace."""
        url = f"http://127.0.0.1:{self.http}/v1/projects/default/spans?limit=1000&trace_id={trace_id}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 404:  # no project before the first span
                return []
            raise
        return found

    def wait(self, trace_id: str, count: int) -> list[dict[str, Any]]:
        """Wait until so many spans of a trace are there."""
        give_up, pause = time.monotonic() + 60, threading.Event()
        while len(found := self.spans(trace_id)) < count:
            assert time.monotonic() < give_up, f"of {count} spans {[one['name'] for one in found]} arrived"
            pause.wait(0.2)
        return found


@pytest.fixture(scope="module")
def phoenix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phoenix]:
    program = os.environ.get("SPANLOOM_PHOENIX")
    if program is None:
        pytest.fail("SPANLOOM_PHOENIX names the backend's program; `make e2e` installs one and sets it")
    made = Phoenix(_free_port(), _free_port())
    folder: Path = tmp_path_factory.mktemp("phoenix")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(made.http),
        "PHOENIX_GRPC_PORT": str(made.grpc),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, "serve"], env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_up(process, made, folder / "log")
            yield made
        finally:
            process.terminate()
            process.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_up(process: subprocess.Popen[bytes], phoenix: Phoenix, log: Path) -> None:
    give_up, pause = time.monotonic() + START_SECONDS, threading.Event()
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < give_up, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{phoenix.http}/healthz", timeout=5):
                return
        except OSError:
            pause.wait(0.5)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.stores("sqlite", "postgres", why="an in-memory store has no worker processes that set up an exporter")
def test_an_execution_is_one_trace_in_a_real_backend(
    idle_system: System, phoenix: Phoenix, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = idle_system
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", phoenix.endpoint(protocol))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    child = system.register({"id": "pack", "type": "echo"}, name="shipping")
    flow = system.register(
        {"id": "a", "type": "telling", "retry": {"max_attempts": 2, "delay": 0.01}},
        {"id": "b", "type": "echo", "inputs": ["a"]},
        {"id": "c", "type": "echo", "inputs": ["a"]},
        {"id": "join", "type": "collect", "inputs": ["b", "c"]},
        {"id": "ship", "type": "workflow", "config": {"workflow": child}, "inputs": ["join"]},
        name="orders",
    )
    with worker_processes(2, system.store_url, system.redis_url):
        execution = system.run(flow)

    # the execution's own, six attempts, what the handler opened, and the child: its own, its start and its node
    names = [flow, "run a", "run a", "run b", "run c", "run join", "run ship", child, f"enqueue {child}", "run pack"]
    opened = ["outer", "inner", "outer", "inner", "breaks"]
    spans = phoenix.wait(str(execution.trace_parent).split("-")[1], len(names + opened))
    assert sorted(span["name"] for span in spans) == sorted(names + opened)
    by_id = {span["context"]["span_id"]: span for span in spans}
    (root,) = [span for span in spans if span["parent_id"] is None]
    assert root["name"] == flow
    for span in spans:
        if span is root:
            continue
        above = by_id[span["parent_id"]]
        assert above["start_time"] <= span["start_time"] <= span["end_time"] <= above["end_time"], (span, above)
    (below,) = [span for span in spans if span["name"] == child]
    assert by_id[below["parent_id"]]["name"] == "run ship"
    assert [span["status_code"] for span in spans if span["name"] == "run a"].count("ERROR") == 1
