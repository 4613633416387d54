"""What every test may ask for: real servers, a fresh store of each kind, and the proof that nothing is left behind."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
import structlog

from spanloom.engine.errors import ConfigurationError
from spanloom.testing.server_process import ServerProcess
from spanloom.testing.servers import PostgresServer, RedisServer
from spanloom.testing.servers import postgres_server as new_postgres_server
from spanloom.testing.servers import redis_server as new_redis_server
from support.case_ids import refuse_addresses
from support.fork_server import MODULE as FORK_SERVER
from support.memory_disk import memory_disk
from support.postgres import at_work, copied_database, stop_watching, watch_transitions
from support.reading import begin_elsewhere
from support.selection import select

pytest_plugins = ["support.hanging"]

SETTLE_SECONDS = 5.0  # how long what a test stopped may take to be gone
_SERVICES = {"redis_server", "postgres_server"}
#: Files that take longest, longest first: begun first, so that at the end no core waits for another one's last file.
_LONG = (
    "model/test_model.py",
    "e2e/test_delivery.py",
    "e2e/test_crashes.py",
    "faults/test_crash_points.py",
    "e2e/test_sdk.py",
    "faults/test_chaos.py",
    "e2e/test_wfcommons.py",
    "e2e/test_supervisor.py",
    "e2e/test_traces.py",
    "e2e/test_key_prefix.py",
    "e2e/test_running.py",
    "model/test_twins.py",
    "e2e/test_odd_things.py",
    "differential/test_differential.py",
    "test_docs.py",
    "faults/test_operator_crashes.py",
    "e2e/test_demo.py",
    "e2e/test_logs.py",
    "faults/test_restart_during_recovery.py",
    "e2e/test_endpoints.py",
    "e2e/test_outages.py",
    "engine/test_files.py",
    "e2e/test_events_outages.py",
    "e2e/test_storms.py",
    "stores/test_conformance_postgres.py",
    "stores/test_conformance_sqlite.py",
    "engine/test_expressions.py",
    "e2e/test_mistakes.py",
    "e2e/test_maps.py",
    "e2e/test_races.py",
)
_servers: list[ServerProcess] = []
IN_MEMORY = memory_disk()

AnyServer = TypeVar("AnyServer", bound=ServerProcess)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Begin two processes for each core: much of the suite waits."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 2 * cores


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --every-store."""
    parser.addoption(
        "--every-store", action="store_true", help="run each behaviour over every store, and in every case"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep what tests write in memory, where there is room: they write gigabytes, and read little of it again."""
    if config.option.basetemp is None and IN_MEMORY is not None:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(IN_MEMORY))


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Share the reading of the files among the processes. None of it is garbage."""
    gc.disable()
    begin_elsewhere(session.config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Mark what needs a server; leave out what must be asked for by its mark; begin with what takes long."""
    refuse_addresses(items)
    items.sort(key=_turn)
    for item in items:
        if _SERVICES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.services)
    select(config, items)
    yield  # -m and -k take their share
    for mark in ("torture", "backend"):
        if mark not in config.option.markexpr:
            left_out = [item for item in items if item.get_closest_marker(mark)]
            if left_out:
                config.hook.pytest_deselected(items=left_out)
                items[:] = [item for item in items if not item.get_closest_marker(mark)]


def pytest_collection_finish() -> None:
    """Leave what was collected to the garbage collector no more: it is large, and stays to the end."""
    gc.enable()
    gc.freeze()


def _turn(item: pytest.Item) -> tuple[int, str]:
    path = item.path.as_posix()
    return next((place for place, name in enumerate(_LONG) if path.endswith(name)), len(_LONG)), path


def _run(make: Callable[[], AnyServer]) -> Iterator[AnyServer]:
    try:
        server = make()
    except ConfigurationError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    with server:
        _servers.append(server)
        yield server
        _servers.remove(server)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that runs in this process sets up logging for it: the next test finds it as it was."""
    root, configured, found = logging.getLogger(), structlog.is_configured(), structlog.get_config()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    if configured:
        structlog.configure(**found)
    else:
        structlog.reset_defaults()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One Redis for the whole run."""
    yield from _run(new_redis_server)


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis of this test's own, which may be killed."""
    yield from _run(new_redis_server)


@pytest.fixture(scope="module")
def own_redis_url() -> Iterator[str]:
    """A Redis that no other module's tests touch."""
    for server in _run(new_redis_server):
        yield server.url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One Postgres for the whole run, whose data is in memory where there is room."""
    folder = Path(tempfile.mkdtemp(prefix="spanloom-postgres-", dir=IN_MEMORY))
    try:
        # What is played here is never a power cut.
        for server in _run(lambda: new_postgres_server(folder, fsync=False)):
            _keep_small(server)
            yield server
            stop_watching(server)
    finally:
        shutil.rmtree(folder)


def _keep_small(server: PostgresServer) -> None:
    """Let the log of changes not grow to the gigabyte that is usual: it may be in memory."""
    import psycopg

    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("alter system set max_wal_size = '256MB'")
        connection.execute("select pg_reload_conf()")


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """An empty Redis."""
    import redis

    redis_server.start()  # a test of outages may have left it down
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def _postgres_template(postgres_server: PostgresServer) -> str:
    """A database that is migrated once; each test gets a copy, which takes a fraction of a migration."""
    import psycopg

    from spanloom.stores import open_store

    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute("create database template_spanloom")
    store = open_store(postgres_server.database_url("template_spanloom"))
    store.migrate()
    store.close()
    watch_transitions(postgres_server.database_url("template_spanloom"))
    return "template_spanloom"


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, _postgres_template: str) -> Iterator[str]:
    """A migrated, empty Postgres database of this test's own; fails the test that leaves a transaction open in it."""
    with copied_database(postgres_server, _postgres_template) as name:
        yield postgres_server.database_url(name)
        postgres_server.start()
        _nobody_is_at_work(postgres_server, name)


@pytest.fixture(scope="module")
def _module_database(postgres_server: PostgresServer, _postgres_template: str) -> Iterator[str]:
    with copied_database(postgres_server, _postgres_template) as name:
        yield name


@pytest.fixture(scope="module")
def module_postgres_url(postgres_server: PostgresServer, _module_database: str) -> str:
    """A migrated Postgres database that the tests of one module share."""
    return postgres_server.database_url(_module_database)


@pytest.fixture
def no_transaction_left(postgres_server: PostgresServer, _module_database: str) -> Iterator[None]:
    """Fail the test that leaves a transaction open in its module's database."""
    yield
    _nobody_is_at_work(postgres_server, _module_database)


def _nobody_is_at_work(server: PostgresServer, database: str) -> None:
    left = _wait_until_empty(lambda: at_work(server, database))
    assert not left, f"connections of this test are still at work: {left}"


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the schema; each test gets a copy, which takes a fraction of a migration."""
    from spanloom.stores import open_store

    path = tmp_path_factory.mktemp("template") / "spanloom.db"
    store = open_store(f"sqlite:///{path}")
    store.migrate()
    store.close()
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path, _sqlite_template: Path) -> str:
    """A SQLite store in a file of this test's own, with the schema and empty."""
    return f"sqlite:///{shutil.copy(_sqlite_template, tmp_path / 'spanloom.db')}"


_POSTGRES = pytest.param("postgres", marks=pytest.mark.services)


@pytest.fixture(params=["memory", "sqlite", _POSTGRES])
def store_url(request: pytest.FixtureRequest) -> str:
    """An empty store of each kind in turn."""
    return _url_of(request)


@pytest.fixture(params=["sqlite", _POSTGRES])
def shared_store_url(request: pytest.FixtureRequest) -> str:
    """An empty store of each kind that several processes can open."""
    return _url_of(request)


def _url_of(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "memory://"
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Fail the test that leaves a thread or a child process behind; set up first, so checked last."""
    threads = set(threading.enumerate())
    children = _child_pids()
    yield

    def left() -> list[str]:
        # The one that commands are forked from stays to the end.
        ours = set().union(*(server.pids for server in _servers))
        return [
            *(f"thread {thread.name}" for thread in threading.enumerate() if thread not in threads),
            *(f"process {pid}" for pid in _child_pids() - children - ours if FORK_SERVER not in _command_of(pid)),
        ]

    still_there = _wait_until_empty(left)
    assert not still_there, f"this test left behind: {', '.join(still_there)}"


def _child_pids() -> set[int]:
    threads = Path("/proc/self/task")
    try:  # Linux tells it at once; psutil would look at every process, before and after each of thousands of tests
        return {int(pid) for thread in threads.iterdir() for pid in (thread / "children").read_text().split()}
    except OSError:  # another system, or a thread that has just ended
        return {child.pid for child in psutil.Process().children()}


def _command_of(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


def _wait_until_empty(look: Callable[[], list[str]]) -> list[str]:
    deadline = time.monotonic() + SETTLE_SECONDS
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found
