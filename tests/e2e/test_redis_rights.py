"""The rights of a Redis user: with those that the documentation lists, and no others, a whole system works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from e2e.support.redis_play import play_apart
from spanloom.testing.servers import RedisServer, redis_server

pytestmark = pytest.mark.services

_DOCUMENT = Path(__file__).parents[2] / "docs" / "redis.md"
_FORBIDDEN = (
    "FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG GET maxmemory", "SHUTDOWN NOSAVE", "ACL LIST", "CLIENT LIST", "MONITOR",
    "GET other:key", "SET spanloomx 1", "PUBLISH other 1",
)  # fmt: skip


def _documented() -> list[str]:
    """Return the words of the documentation's command that makes the user."""
    (command,) = re.findall(r"^ACL SETUSER app .*?(?=^```)", _DOCUMENT.read_text(), re.S | re.M)
    return str(command).replace("\\\n", " ").split()


def test_a_user_with_just_the_documented_rights_serves_a_whole_system(sqlite_url: str) -> None:
    with redis_server() as server, Redis.from_url(server.url) as client:
        client.execute_command(*_documented())
        url = _url_of_user(server)

        played = play_apart(sqlite_url, url)

        # Nothing was refused but CLIENT SETINFO, by Redis 6: redis-py introduces itself by it, and does without.
        assert [entry for entry in client.execute_command("ACL", "LOG") if entry[b"object"] != b"client"] == []
        assert (played["output"], played["failed"], played["workers seen by RQ"]) == ("done", "failed", True)
        with Redis.from_url(url) as app:
            for command in _FORBIDDEN:
                with pytest.raises(ResponseError, match=r"(?i)permissions"):
                    app.execute_command(*command.split())


def _url_of_user(server: RedisServer) -> str:
    return f"unix://app:secret@{server.socket_path}"
