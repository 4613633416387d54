"""An SDK set up by the standard variables alone: all three signals arrive, and a dead collector keeps nobody."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.support.harness import System, WorkerProcess
from e2e.support.harness import system as new_system
from e2e.support.receivers import PROTOCOLS, otlp_receiver
from spanloom.testing.servers import RedisServer

# What a process does with an SDK that it did not set up itself.
TELLS = """
import json, sys, logging
from opentelemetry import _logs, metrics, trace
from spanloom.worker.process.otel_sdk import configure_sdk
end = configure_sdk("told", instance_id="one")
links = [trace.Link(trace.SpanContext(number, number, False)) for number in range(1, 1101)]
with trace.get_tracer("t").start_as_current_span("a span", links=links):
    metrics.get_meter("t").create_counter("a.counter").add(3)
    _logs.get_logger("t").emit(_logs.LogRecord(body="a line", severity_text="INFO"))
end()
loaded = [name for name in ("opentelemetry.sdk.trace", "opentelemetry.sdk._logs", "grpc") if name in sys.modules]
print(json.dumps({"links": len(links), "loaded": loaded}))
"""

# The user's own code was first with its traces; what it did not set up is.
OWN_TRACES = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.trace import TracerProvider
own = TracerProvider()
trace.set_tracer_provider(own)
from spanloom.worker.process.otel_sdk import configure_sdk
end = configure_sdk("told")
assert trace.get_tracer_provider() is own
metrics.get_meter("t").create_counter("a.counter").add(1)
end()
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_three_signals_arrive(protocol: str) -> None:
    with otlp_receiver(protocol) as receiver:
        done = run(
            TELLS,
            OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
            OTEL_EXPORTER_OTLP_HEADERS="x-key=sesame",
            OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
        )

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (span,), (line,), (point,) = receiver.spans, receiver.logs, receiver.points
    assert (span.name, len(span.links), span.dropped_links_count) == ("a span", 1024, 1100 - 1024)
    assert (line.body.string_value, line.trace_id, line.span_id) == ("a line", span.trace_id, span.span_id)
    assert (point.name, point.value) == ("a.counter", 3)
    for told in receiver.resources.values():
        assert told[0]["service.name"] == "told"
        assert told[0]["service.instance.id"] == "one"
        assert told[0]["deployment.environment.name"] == "test"
    assert {headers["x-key"] for headers in receiver.headers} == {"sesame"}


def test_each_signal_has_variables_of_its_own() -> None:
    with otlp_receiver("grpc") as traces, otlp_receiver() as others:
        done = run(
            TELLS,
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=traces.url,
            OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="grpc",
            OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"{others.url}/v1/metrics",
            OTEL_LOGS_EXPORTER="none",
            OTEL_SERVICE_NAME="mine",
            OTEL_SPAN_LINK_COUNT_LIMIT="7",
        )

    assert done.returncode == 0, done.stderr
    (span,) = traces.spans
    assert len(span.links) == 7
    assert traces.points == others.spans == others.logs == traces.logs == []
    assert [point.value for point in others.points] == [3]
    assert traces.services == others.services == {"mine"}


def test_an_exporter_alone_asks_for_its_signal_and_the_console_is_standard_error() -> None:
    done = run(TELLS, OTEL_TRACES_EXPORTER="console")

    assert done.returncode == 0, done.stderr
    assert '"name": "a span"' in done.stderr
    assert "a.counter" not in done.stderr
    assert json.loads(done.stdout)["links"] == 1100


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "none"},
    ],
    ids=["nothing said", "disabled", "none"],
)
def test_nothing_is_set_up_or_imported_that_nobody_asked_for(environment: dict[str, str]) -> None:
    done = run(TELLS, **environment)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["loaded"] == []


def test_what_the_users_own_code_set_up_stays() -> None:
    with otlp_receiver() as receiver:
        done = run(OWN_TRACES, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url)

    assert (done.returncode, done.stderr) == (0, "")
    assert [point.name for point in receiver.points] == ["a.counter"]


def test_metrics_that_are_the_apps_own_are_not_replaced_by_prometheus() -> None:
    code = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
own = MeterProvider()
metrics.set_meter_provider(own)
from spanloom.worker.process.otel_sdk import configure_sdk
configure_sdk("told", prometheus=True)()
assert metrics.get_meter_provider() is own
"""
    done = run(code)

    assert done.returncode == 0, done.stderr
    assert "metrics_are_the_apps_own" in done.stdout


@contextmanager
def dead_collector(how: str) -> Iterator[str]:
    """One that nobody listens at, or that takes connections and never answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if how == "silent":
            taken.listen(100)
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.one_in(2)
@pytest.mark.parametrize("how", ["gone", "silent"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_dead_collector_is_not_waited_for(protocol: str, how: str) -> None:
    code = TELLS.replace("end()\n", "import time\nbegan = time.monotonic()\nend()\ntook = time.monotonic() - began\n")
    code = code.replace('"links": len(links)', '"took": took')
    with dead_collector(how) as url:
        done = run(code, OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)

    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["took"] < 8  # 2 s, and what a loaded machine adds; the SDK itself would take 10


def test_a_collector_that_never_answers_keeps_no_worker_that_stops(
    tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        dead_collector("silent") as url,
        new_system("sqlite", f"sqlite:///{tmp_path}/spanloom.db", own_redis.url, workers=0) as system,
    ):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        worker = WorkerProcess(system.store_url, system.redis_url)
        worker.wait_ready()
        run_some(system)
        began = time.monotonic()

        assert worker.stop() == 0

        assert time.monotonic() - began < 9, worker.log
        assert "Traceback" not in worker.log


def run_some(system: System) -> None:
    workflow_id = system.register({"id": "a", "type": "echo"}, {"id": "b", "type": "echo", "inputs": ["a"]})
    assert [system.run(workflow_id, number).output for number in range(3)] == [0, 1, 2]


def test_commands_that_only_read_need_no_exporter(sqlite_url: str) -> None:
    environment = {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "none such",
    }
    command = [sys.executable, "-m", "spanloom.cli", "list", "--store", sqlite_url]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("missing", "environment", "says"),
    [
        ("opentelemetry.exporter.otlp.proto.grpc", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "spanloom[otlp-grpc]"),
        ("opentelemetry.exporter.otlp.proto.http", {}, "spanloom[otlp]"),
    ],
)
def test_a_package_that_is_missing_is_named(missing: str, environment: dict[str, str], says: str) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
from spanloom.engine import ConfigurationError
from spanloom.worker.process.otel_sdk import configure_sdk
try:
    configure_sdk("told")
except ConfigurationError as error:
    print(error)
"""
    done = run(code, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", **environment)

    assert done.returncode == 0, done.stderr
    assert f"pip install '{says}'" in done.stdout
    assert len(done.stdout.splitlines()) == 1
