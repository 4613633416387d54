"""What a run is made on: the machine, and the versions of what takes part."""

from __future__ import annotations

import os
import platform
import sqlite3
from importlib.metadata import version
from typing import Any

import psycopg
from redis import Redis

from spanloom.testing.servers import PostgresServer, RedisServer

__all__ = ["machine", "postgres_versions", "redis_version"]


def machine() -> dict[str, Any]:
    """Say what this run is made on."""
    packages = ("spanloom", "rq", "redis", "hiredis", "psycopg", "pydantic", "SQLAlchemy")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": cores,
        "load before": round(os.getloadavg()[0], 1),  # of the last minute: what else the machine is doing
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": platform.python_version(),
        **{name: version(name) for name in packages},
        "SQLite": sqlite3.sqlite_version,
    }


def redis_version(server: RedisServer) -> dict[str, str]:
    """Say which server answers as Redis."""
    with Redis.from_url(server.url) as client:
        info = client.info("server")
    name = "Valkey" if info.get("server_name") == "valkey" else "Redis"
    return {f"{name} server": str(info.get("valkey_version") or info["redis_version"])}


def postgres_versions(server: PostgresServer) -> dict[str, str]:
    """Say which Postgres answers, and whether it really writes to disk."""
    with psycopg.connect(server.url) as connection:
        settings = ("server_version", "fsync", "synchronous_commit")
        found = {name: str(connection.execute(f"show {name}").fetchone()[0]) for name in settings}  # type: ignore[index]
    return {"Postgres": found.pop("server_version"), **found}
