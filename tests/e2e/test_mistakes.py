"""Mistakes that people make at the command line: each ends in exit code 2 and a few lines that say what to do."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest

from spanloom.stores import open_store
from support.fork_server import run_command

UNKNOWN_ID = "019cb2f4-1111-7abc-8def-0123456789ab"

FILES = {
    "app.py": """
from spanloom.engine import NodeRegistry, WorkflowEngine

registry = NodeRegistry()


@registry.node("fetch")
def fetch(ctx):
    return None


engine = WorkflowEngine(registry, "sqlite:///app.db", "redis://127.0.0.1:{closed}")
in_memory = WorkflowEngine(registry, "memory://", "redis://127.0.0.1:{closed}")
""",
    "broken.py": "engine = 1 / 0\n",
    "broken_url.py": """
from spanloom.engine import NodeRegistry, WorkflowEngine

engine = WorkflowEngine(NodeRegistry(), "mysql://localhost/app")
""",
    "good.yaml": """
id: etl
nodes:
  - {{id: fetch, type: fetch}}
""",
    "typo.yaml": """
id: etl
nodes:
  - {{id: fetch, type: fetch}}
  - {{id: store, type: fetch, inputs: [fetsh]}}
""",
    "unknown_type.yaml": """
id: etl
nodes:
  - {{id: fetch, type: fetch}}
  - {{id: mail, type: send_mail, inputs: [fetch]}}
""",
    "five_problems.yaml": """
id: etl
nodes:
  - {{id: "a b", type: fetch}}
  - {{id: b, type: fetch, inputs: [c]}}
  - {{id: c, type: fetch, inputs: [b]}}
  - {{id: d, type: fetch, inputs: [x]}}
  - {{id: e, type: fetch, inputs: [y]}}
  - {{id: f, type: ""}}
""",
    "broken.yaml": "id: [etl\n",
}


class Mistake(NamedTuple):
    """One command line, what its message must hold, and the environment it is made in."""

    what: str
    command: str
    says: tuple[str, ...]
    environment: Mapping[str, str] = MappingProxyType({})
    made: bool = False  # whether its store is there


STORE = "--store sqlite:///here.db"

MISTAKES = [
    # which store, which Redis
    Mistake("no store", "list", ("--store URL", "SPANLOOM_STORE_URL")),
    Mistake("unknown scheme", "list --store mysql://localhost/app", ("'mysql", "postgresql://")),
    Mistake("no URL", "list --store here.db", ("has no scheme", "sqlite:///")),
    Mistake("malformed Postgres URL", "list --store postgresql://[::1/app", ("malformed",)),
    Mistake("malformed Postgres port", "list --store postgresql://localhost:port/app", ("malformed", "postgresql://")),
    Mistake("no Redis URL", f"run etl {STORE} --redis localhost:6379", ("is not a Redis URL", "redis://")),
    Mistake("malformed Redis URL", f"run etl {STORE} --redis redis://localhost:port", ("redis://host:6379/0",)),
    Mistake("Redis URL with a secret", f"run etl {STORE} --redis redis://:secret/x@localhost", ("not a Redis URL",)),
    Mistake(
        "Redis URL of the environment with a secret", f"run etl {STORE}", ("not a Redis URL",),
        {"SPANLOOM_REDIS_URL": "redis://:secret#x@localhost"},
    ),
    Mistake("Redis URL with an unknown option", f"run etl {STORE} --redis redis://u:secret@h?foo=1", ("option 'foo'",)),
    Mistake("store URL with a secret", "list --store postgresql://me:12/secret@localhost/app", ("malformed",)),
    Mistake("store URL of another kind with a secret", "list --store sqlite://me:secret@localhost/x.db", ("no file",)),
    Mistake("app and store", f"list --app app:engine {STORE}", ("either --app or --store",)),
    Mistake("wrong namespace", f"list {STORE}", ("SPANLOOM_NAMESPACE", "'Not so'"), {"SPANLOOM_NAMESPACE": "Not so"}),
    # services that are not there
    Mistake(
        "Redis not running", f"run etl {STORE} --redis redis://127.0.0.1:{{closed}}",
        ("Redis at redis://127.0.0.1:{closed}/0 did not answer", "start it"),
    ),
    Mistake("Redis not running, worker", "worker app:engine", ("127.0.0.1:{closed}/0 did not answer", "start it")),
    Mistake("Redis not running, several workers", "worker app:engine --processes 3", ("did not answer", "start it")),
    Mistake(
        "Postgres not running", "list --store postgresql://app:secret@127.0.0.1:{closed}/app",
        ("127.0.0.1", "{closed}"),
    ),
    # MODULE:ENGINE
    Mistake("module not importable", "worker nowhere:engine", ("no module 'nowhere'", "{directory}")),
    Mistake("module named by the environment", "list", ("no module 'nowhere'",), {"SPANLOOM_APP": "nowhere:engine"}),
    Mistake("module that fails", "worker broken:engine", ("broken.py:1: ZeroDivisionError", "mend the module")),
    Mistake("engine with a wrong URL", "worker broken_url:engine", ("'mysql",)),
    Mistake("attribute missing", "worker app:engin", ("has no 'engin'", "did you mean app:engine?")),
    Mistake("not an engine", "worker app:registry", ("is a NodeRegistry, not a WorkflowEngine",)),
    Mistake("memory store with a worker", "worker app:in_memory", ("memory://", "sqlite:///")),
    Mistake("memory store with workers", "worker app:in_memory --processes 2", ("memory://", "sqlite:///")),
    Mistake("memory store to read from", "list --store memory://", ("memory://", "sqlite:///")),
    Mistake("memory store to run on", "run etl --app app:in_memory", ("memory://", "sqlite:///")),
    Mistake("no concurrency", "worker app:engine --concurrency 0", ("concurrency", "greater than or equal to 1")),
    Mistake("no queue", "worker app:engine --queues ,", ("queues",)),
    Mistake("a queue with markup", "worker app:engine --queues a[/]b", ("queues.0", "pattern")),
    Mistake("a queue with a dot", "worker app:engine --queues default,a.high", ("queues.1", "pattern")),
    Mistake("one name for two", "worker app:engine --processes 2 --name w", ("--name is for one worker",)),
    # workflow files
    Mistake(
        "handler not registered", "register unknown_type.yaml --app app:engine",
        ("'mail'", "no handler is registered for its type 'send_mail'", "'fetch'"),
    ),
    Mistake("typo in an input id", f"register typo.yaml {STORE}", ("'store'", "'fetsh'", "did you mean 'fetch'?")),
    Mistake(
        "several problems", f"register five_problems.yaml {STORE}",
        ("'a b'", "cycle", "'x'", "'y'", "node 'f'"),
    ),
    Mistake("file not there", f"register nothing.yaml {STORE}", ("nothing.yaml",)),
    Mistake("file not YAML", f"register broken.yaml {STORE}", ("broken.yaml is not YAML", "line")),
    Mistake("version not as expected", f"register good.yaml {STORE} --expect-version 7", ("'etl'", "expected 7")),
    # arguments
    Mistake("input not JSON", f"run etl {STORE} --input {{{{id:7}}}}", ("not valid", "@FILE")),
    Mistake("time of no key", f"run etl {STORE} --key-ttl 1h", ("--key-ttl", "--key")),
    Mistake("unknown command", "lst", ("'lst'", "--help")),
    Mistake("unknown store", f"list {STORE}", ("here.db does not exist", "spanloom migrate --store sqlite:///")),
    Mistake("unknown workflow", f"workflows etl {STORE}", ("no workflow 'etl' is registered",), made=True),
    Mistake("unknown execution", f"show {UNKNOWN_ID} {STORE}", (UNKNOWN_ID,), made=True),
    Mistake("items and attempts", f"show x --items a --attempts a {STORE}", ("either --items or --attempts",)),
    Mistake("no such item", f"show {UNKNOWN_ID} --attempts a:0 {STORE}", ("'a:0'", "NODE:ITEM")),
    Mistake("nothing to cancel", f"cancel {STORE}", ("EXECUTION_ID", "`spanloom cancel --help`")),
    Mistake("revision of two", f"pause a b --expected-revision 1 {STORE}", ("--expected-revision", "name one")),
    Mistake("control of a private store", f"retry {UNKNOWN_ID} --app app:in_memory", ("memory://", "sqlite:///")),
    # telemetry
    Mistake(
        "unknown protocol", f"cancel {UNKNOWN_ID} {STORE}", ("OTEL_EXPORTER_OTLP_PROTOCOL='http/json'", "or grpc"),
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
    ),
    Mistake(
        "unknown exporter", "worker app:engine", ("OTEL_METRICS_EXPORTER='prometheus'", "--metrics-port"),
        {"OTEL_METRICS_EXPORTER": "prometheus"},
    ),
    Mistake(
        "port taken", "worker app:engine --metrics-port {closed}",
        ("can't serve metrics on 127.0.0.1:{closed} (Address already in use)", "--metrics-port"),
    ),
    Mistake(
        "no such address", "worker app:engine --metrics-port {closed} --metrics-host 192.0.2.1",
        ("can't serve metrics on 192.0.2.1:{closed}", "--metrics-host"),
    ),
    Mistake("unknown part of an id", f"logs 89abcdef {STORE}", ("'89abcdef'", "`spanloom list`"), made=True),
]  # fmt: skip


@pytest.fixture
def closed() -> Iterator[str]:
    """A port of this machine at which nobody listens, and nobody else can while the test lasts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield str(taken.getsockname()[1])


@pytest.fixture
def directory(tmp_path: Path, closed: str) -> Path:
    """A working directory with an app and some workflow files."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text.format(closed=closed))
    return tmp_path


def refused(mistake: Mistake, directory: Path, **places: str) -> None:
    if mistake.made:
        open_store(f"sqlite:///{directory}/here.db").migrate()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SPANLOOM_")}
    arguments = mistake.command.format(directory=directory, **places).split()
    done = run_command(arguments, directory, {**inherited, **mistake.environment})
    assert "Traceback" not in done.stderr
    for fragment in mistake.says:
        assert fragment.format(directory=directory, **places) in done.stderr
    assert 1 <= len(done.stderr.splitlines()) <= 3, done.stderr
    assert done.stdout == ""
    assert done.returncode == 2
    assert "secret" not in done.stderr


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_a_mistake_is_told_in_a_few_lines_that_say_what_to_do(mistake: Mistake, directory: Path, closed: str) -> None:
    refused(mistake, directory, closed=closed)


def test_a_workflow_that_is_not_registered_is_not_started(directory: Path, closed: str, redis_url: str) -> None:
    command = f"run etl {STORE} --redis {redis_url}"
    mistake = Mistake("unknown workflow", command, ("no workflow 'etl' is registered",))
    refused(mistake, directory, closed=closed)


@pytest.mark.parametrize("command", ["list", "run etl --redis {redis}", "register good.yaml"])
def test_a_store_that_is_not_migrated_says_how_to_migrate_it(
    command: str, directory: Path, closed: str, postgres_url: str, redis_url: str
) -> None:
    says = ("has no Spanloom schema", "spanloom migrate --store 'postgresql://")
    mistake = Mistake("not migrated", f"{command} --store {postgres_url}&namespace=elsewhere", says)
    refused(mistake, directory, closed=closed, redis=redis_url)
