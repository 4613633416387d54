"""The SQLite store: one file, any number of processes on one machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from spanloom.engine.arguments import FilePath, checked
from spanloom.engine.errors import ConfigurationError, StoreNotMigrated, StoreUnavailable
from spanloom.engine.urls import shown_url
from spanloom.stores.schema import SCHEMA_VERSION
from spanloom.stores.sqlite.connections import SqliteConnections
from spanloom.stores.sqlite.private_file import create_private
from spanloom.stores.sqlite.transitions import SqliteTransitions
from spanloom.stores.version import check_not_newer

__all__ = ["SqliteExecutionStore"]


class SqliteExecutionStore(SqliteTransitions):
    """A store in one SQLite file, in write-ahead mode, for several processes of one machine.

    - The first use opens the store: it creates the file, which only this user can read, and its parent directories, and
      migrates the schema to this release's version.
    - With `synchronous="full"` every commit survives a power cut. With `"normal"`, about three times as fast, the last
      commits may be lost by one, but never the file.
    - A process that is stopped inside its write transaction (SIGSTOP, a debugger) stops all other writers.
    - The file must be on a local disk: write-ahead mode needs shared memory.

    >>> store = SqliteExecutionStore("/data/orders.db", synchronous="normal")
    >>> store.url
    'sqlite:////data/orders.db'
    """

    @checked
    def __init__(self, path: FilePath | os.PathLike[str], *, synchronous: Literal["full", "normal"] = "full") -> None:
        super().__init__()
        if synchronous not in ("full", "normal"):
            raise ConfigurationError(f"synchronous is {synchronous!r}; SQLite stores know 'full' and 'normal'")
        if str(path) in ("", ":memory:"):
            raise ConfigurationError("a SQLite store needs the path of a file; memory:// keeps executions in memory")
        self._path = Path(os.path.abspath(path))
        self._connections = SqliteConnections(str(self._path), synchronous=synchronous)
        self._opened = False

    @classmethod
    def from_url(cls, url: str, namespace: str = "") -> SqliteExecutionStore:
        """Return the store of `sqlite:///relative.db` or `sqlite:////absolute.db`, also with `?synchronous=normal`.

        A file has one namespace, whatever its name. Raises ConfigurationError for any other URL.
        """
        parts = urlsplit(url)
        path = unquote(parts.path[1:])
        if parts.netloc or not path:
            raise ConfigurationError(
                f"{shown_url(url)!r} names no file; write sqlite:///relative/path.db or, with four slashes, sqlite:////absolute/path.db"
            )
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        synchronous = options.pop("synchronous", "full")
        if options or parts.fragment:
            raise ConfigurationError(
                f"{shown_url(url)!r} has more than a path; the only option of sqlite URLs is ?synchronous=normal"
            )
        if synchronous not in ("full", "normal"):
            raise ConfigurationError(f"{shown_url(url)!r} sets synchronous to {synchronous!r}; it is full or normal")
        return cls(path, synchronous=synchronous)  # type: ignore[arg-type]  # checked above

    @property
    def url(self) -> str:
        """See Lifecycle.url."""
        return f"sqlite:///{quote(str(self._path))}"

    @property
    def shared(self) -> bool:
        """Whether other processes can open the same store: they can."""
        return True

    def open(self) -> None:
        """See Lifecycle.open. Creates the file, and migrates an older one."""
        self._live()

    def open_existing(self) -> None:
        """See Lifecycle.open_existing."""
        if not self._path.exists():
            raise StoreNotMigrated(self.url, None, SCHEMA_VERSION, exists=False)
        self._live()

    def close(self) -> None:
        """See Lifecycle.close."""
        self._opened = False
        self._connections.close()

    def migrate(self) -> None:
        """See Lifecycle.migrate. Opening does the same."""
        self._live()

    def health(self) -> None:
        """See Lifecycle.health. Also raises if the file was removed under an open store."""
        super().health()
        if not self._path.exists():
            raise StoreUnavailable(f"SQLite store {self._path}: the file was removed while it was open; restart")

    def write_problem(self) -> str | None:
        """See Lifecycle.write_problem."""
        if os.access(self._path, os.W_OK) and os.access(self._path.parent, os.W_OK):
            return None
        return "this user may not write the file and its directory, or their file system is read-only"

    def _live(self) -> SqliteConnections:
        if not self._opened:
            self._open()
        return self._connections

    def _open(self) -> None:
        # Several threads and processes may do this at once: the write transaction serializes them.
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(f"SQLite store {self._path}: {error}; choose another path") from error
        create_private(self._path)
        try:
            if self._version() != SCHEMA_VERSION:
                self._migrate()
        except BaseException:
            self._connections.close()
            raise
        self._opened = True

    def _migrate(self) -> None:
        with self._connections.translated(), self._connections.writing():
            if self._version() != SCHEMA_VERSION:  # no other process was first
                from spanloom.stores.migrations import upgrade  # Alembic is slow to import

                upgrade(self._connections.writer, None, self.url)

    def _version(self) -> str | None:
        """Return the schema's version, None for an empty file. Raises for a newer one or another application's file."""
        with self._connections.reading() as connection:
            tables = set(connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars())
            if not tables:
                return None
            if not {"alembic_version", "store_state"} <= tables:
                raise ConfigurationError(
                    f"{self._path} holds tables of another application; give the store a file of its own"
                )
            found: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        check_not_newer(self.url, found)
        return found
