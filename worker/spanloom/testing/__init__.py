"""Test tools for users of Spanloom and authors of stores; the conformance suite is in spanloom.testing.conformance."""

from __future__ import annotations

from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver
from spanloom.testing.race import race
from spanloom.testing.servers import PostgresServer, RedisServer, postgres_server, redis_server

__all__ = [
    "ManualClock",
    "PostgresServer",
    "RedisServer",
    "StoreDriver",
    "postgres_server",
    "race",
    "redis_server",
]
