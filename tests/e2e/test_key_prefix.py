"""RQ's key prefix: with one hash tag in it, all that a namespace keeps is in one slot of a Redis Cluster."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from redis import Redis
from redis.crc import key_slot
from rq import defaults

from e2e.support.harness import until
from e2e.support.redis_play import play_apart
from spanloom.testing.servers import RedisServer, redis_server

PREFIX = "{spanloom}"
SLOTS = 16384
BUS = 10000  # how far above a server's port its cluster bus is

pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(not hasattr(defaults, "RQ_KEY_PREFIX"), reason="RQ has a key prefix from 3.0 on"),
]


class _ClusterServer(RedisServer):
    """A Redis Cluster of one server, which serves all slots once it was given them."""

    def _command(self) -> list[str]:
        return [*super()._command(), "--bind", "127.0.0.1", "--port", str(_port()), "--cluster-enabled", "yes"]


def _port() -> int:
    """Return a port that is free together with that of its cluster bus."""
    while True:
        with socket.socket() as probe, socket.socket() as bus:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            try:
                bus.bind(("127.0.0.1", port - BUS))
            except OSError:
                continue
            return port - BUS


@pytest.fixture
def cluster() -> Iterator[RedisServer]:
    with _ClusterServer(redis_server().program) as server:
        with Redis.from_url(server.url) as client:
            client.execute_command("CLUSTER ADDSLOTS", *range(SLOTS))
            until(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        yield server


@pytest.fixture
def plain() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.mark.parametrize("kind", ["plain", "cluster"])
def test_a_whole_system_touches_only_keys_and_channels_under_the_prefix(
    request: pytest.FixtureRequest, kind: str, sqlite_url: str
) -> None:
    server: RedisServer = request.getfixturevalue(kind)
    with Redis.from_url(server.url) as client:
        # given a user whom Redis refuses every other key and channel, also inside of scripts
        client.execute_command(
            "ACL", "SETUSER", "app", "on", ">secret", f"~{PREFIX}:*", "resetchannels", f"&{PREFIX}:*", "+@all"
        )

        played = play_apart(sqlite_url, f"unix://app:secret@{server.socket_path}", PREFIX)

        assert client.execute_command("ACL", "LOG") == []
        keys = [key.decode() for key in client.scan_iter()]

    assert played["output"] == "done"
    assert "execution.completed" in played["events"]
    assert played["failed"] == "failed"
    assert played["workers seen by RQ"]
    assert played["lists"] == ["spanloom.default", "spanloom.default.high"]
    assert played["started"] == []
    assert played["failed jobs"] == 2  # the node that failed, and the foreign job that was refused
    assert played["epoch"] == 1
    assert {f"{PREFIX}:spanloom:epoch", f"{PREFIX}:queues", f"{PREFIX}:failed:spanloom.default"} <= set(keys)
    assert [key for key in keys if not key.startswith(f"{PREFIX}:")] == []
    assert len({key_slot(key.encode()) for key in keys}) == 1


def test_without_a_prefix_the_keys_are_what_they_were(plain: RedisServer, sqlite_url: str) -> None:
    played = play_apart(sqlite_url, plain.url)

    assert played["output"] == "done"
    with Redis.from_url(plain.url) as client:
        families = {key.decode().split(":")[0] for key in client.scan_iter()}
        assert families == {"rq", "spanloom"}
        assert client.exists("spanloom:epoch", "rq:queues", "rq:failed:spanloom.default") == 3


def test_a_cluster_without_the_prefix_is_refused_by_redis_not_half_used(cluster: RedisServer, sqlite_url: str) -> None:
    with pytest.raises(AssertionError, match=r"CROSSSLOT|same slot"):
        play_apart(sqlite_url, cluster.url)
