"""Redis 6.2 and later: no command that we send is younger."""

from __future__ import annotations

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from e2e.support.redis_play import play_apart
from spanloom.engine.queue.redis_client import OLDEST_VERSION

pytestmark = pytest.mark.services

#: What redis-py sends when it connects, and goes on without where Redis lacks it.
_GREETINGS = ("client|", "hello")


def test_no_command_is_younger_than_the_oldest_redis_that_is_supported(redis_url: str, sqlite_url: str) -> None:
    with Redis.from_url(redis_url) as client:
        client.config_resetstat()

        assert play_apart(sqlite_url, redis_url)["output"] == "done"

        sent = [name.removeprefix("cmdstat_") for name in client.info("commandstats")]
        since = {name: _since(client, name) for name in sent if not name.startswith(_GREETINGS)}
    assert {"blpop", "evalsha", "hset", "publish", "zadd"} <= set(since)
    assert {name: version for name, version in since.items() if version > OLDEST_VERSION} == {}


def _since(client: Redis, name: str) -> tuple[int, ...]:
    """Return the first version of Redis that has a command, without its patch."""
    try:
        answer = client.execute_command("COMMAND DOCS", name)
    except ResponseError:
        pytest.skip("this Redis is older than 7.0 and describes no commands; that all ran on it is the proof")
    since: bytes = answer[name.encode()][b"since"]
    return tuple(int(part) for part in since.split(b".")[:2])
