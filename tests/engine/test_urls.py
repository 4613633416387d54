"""No URL is shown with what is secret in it: neither of a store nor of a Redis, however it is malformed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import pytest
import structlog
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.cluster import RedisCluster
from redis.sentinel import Sentinel

from spanloom.engine import ConfigurationError, NodeRegistry, WorkflowEngine
from spanloom.engine.errors import SpanloomError
from spanloom.engine.queue.node_queue import NodeQueue
from spanloom.engine.queue.redis_client import redis_client, redis_location
from spanloom.engine.settings import Settings
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.urls import shown_url
from spanloom.stores import open_store
from spanloom.worker import WorkerOptions
from spanloom.worker.worker import Worker

SECRETS = [
    "s3cr1t",
    "s3c/r1t",
    "s3c#r1t",
    "s3c?r1t",
    "s3c@r1t",
    "12/s3c",
    "12?s3c",
    "12#s3c",
    "s3c:r1t",
    "s3c%2Fr1t",
    "s3c r1t",
    "s3c\tr1t",
]
FORMS = [
    "{scheme}://user:{secret}@host:1/0",
    "{scheme}://:{secret}@host:1/0",
    "{scheme}://{secret}@host/0",
    "{scheme}://user:{secret}@host:port/0",
    "{scheme}://user:{secret}@host:99999/0",
    "{scheme}://user:{secret}@[host/0",
    "{scheme}://user:{secret}@ho\u2100st/0",
    "{scheme}://user:{secret}@host/0?foo=1",
    "{scheme}://user:{secret}@host/abc",
    "{scheme}://host/0?password={secret}",
    "{scheme}://host/0?ssl_password={secret}&db=x",
    "{scheme}:user:{secret}@host",
    "{scheme}:/user:{secret}@host",
    "user:{secret}@host:6379",
]
SCHEMES = ["redis", "rediss", "unix", "http", "postgresql", "sqlite", "memory", "nope"]
PARTS = ("s3c", "r1t")


def urls() -> Iterator[str]:
    for scheme, form, secret in itertools.product(SCHEMES, FORMS, SECRETS):
        yield form.format(scheme=scheme, secret=secret)


def leaks(text: str) -> bool:
    return any(part in text for part in PARTS)


def test_no_url_is_shown_with_its_password() -> None:
    shown = {url: shown_url(url) for url in urls()}
    assert [url for url, text in shown.items() if leaks(text)] == []


def test_no_error_of_a_url_repeats_its_password() -> None:
    found = []
    for url in urls():
        for make in (redis_client, open_store, lambda one: NodeQueue(one, "shop")):
            try:
                made = make(url)
            except SpanloomError as error:
                if leaks(f"{error} {error!r} {error.__cause__}"):
                    found.append((url, str(error)))
            else:
                if isinstance(made, Redis) and leaks(redis_location(made)):
                    found.append((url, redis_location(made)))
                # Postgres' user is no secret.
                if isinstance(made, ExecutionStore) and leaks(re.sub(r"//[^@/]*@", "//", made.url)):
                    found.append((url, made.url))
    assert found == []


def test_settings_are_printed_without_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANLOOM_REDIS_URL", "redis://:s3cr1t@host")
    monkeypatch.setenv("SPANLOOM_STORE_URL", "postgresql://me:s3cr1t@host/app")
    assert not leaks(repr(Settings.from_environment()))


def test_what_an_engine_and_a_worker_report_of_a_redis_that_is_not_there_has_no_password() -> None:
    with structlog.testing.capture_logs() as lines:
        engine = WorkflowEngine(NodeRegistry(), "memory://", "redis://user:s3cr1t@127.0.0.1:1/0?client_name=s3c")
        try:
            engine.open()
            with pytest.raises(SpanloomError) as refused:
                Worker(engine, WorkerOptions()).run()
        finally:
            engine.close()
    assert "127.0.0.1:1" in str(refused.value)
    assert lines
    assert not leaks(f"{lines} {refused.value}")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://host?foo=1", "option 'foo'"),
        ("redis://host?sockettimeout=1", "did you mean 'socket_timeout'"),
        ("redis://host/0?ssl_cert_reqs=none", "rediss://"),
        ("rediss://host/0?ssl_cert_reqs=nope", "'ssl_cert_reqs'"),
        ("redis://host?db=x", "'db'"),
        ("redis://host?db=-1", "'db'"),
        ("redis://host?socket_timeout=nan", "'socket_timeout'"),
        ("redis://host?socket_connect_timeout=-1", "'socket_connect_timeout'"),
        ("redis://host?max_connections=-1", "'max_connections'"),
        ("redis://host?health_check_interval=-1", "'health_check_interval'"),
        ("redis://host?socket_timeout=soon", "'socket_timeout'"),
        ("redis://host?health_check_interval=", "'health_check_interval'"),
        ("redis://host?protocol=9", "'protocol'"),
        ("redis://host?credential_provider=x", "'credential_provider'"),
        ("redis://host?encoding=latin1", "'encoding'"),
        ("redis://host?decode_responses=true", "decode_responses"),
        ("redis://one,two", "not a Redis URL"),
        ("redis://host/abc", "not a Redis URL"),
        ("unix://socket", "not a Redis URL"),
        ("redis+sentinel://host/mymaster", "not a Redis URL"),
    ],
)
def test_an_option_that_is_unknown_or_wrong_is_refused_with_a_sentence(url: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=r".") as refused:
        redis_client(url)
    assert why in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://host?protocol=3",
        "rediss://host?ssl_cert_reqs=none&ssl_check_hostname=false",
        "redis://user:pass%40word@[::1]:6380/3?socket_timeout=2&decode_responses=false",
        "unix:///var/run/redis.sock?db=2",
        "redis://",
    ],
)
def test_known_options_are_taken(url: str) -> None:
    redis_client(url).close()


@pytest.mark.parametrize(
    ("client", "why"),
    [
        (Sentinel([("host", 1)]).slave_for("mymaster"), "master_for"),  # type: ignore[no-untyped-call]
        (RedisCluster.__new__(RedisCluster), "cluster"),
        (AsyncRedis(), "asyncio"),
        (Redis(decode_responses=True), "decode_responses"),
        (b"redis://host", "bytes"),
    ],
)
def test_a_client_that_can_not_be_used_is_refused_with_what_to_give(client: object, why: str) -> None:
    with pytest.raises(ConfigurationError, match=r".") as refused:
        redis_client(client)
    assert why in str(refused.value)


def test_a_sentinels_client_goes_on_with_its_service_and_our_time_limits() -> None:
    sentinel = Sentinel([("one", 1), ("two", 2)])  # type: ignore[no-untyped-call]
    made = redis_client(sentinel.master_for("mymaster"))
    assert "'mymaster'" in redis_location(made)
    manager = made.connection_pool.sentinel_manager  # type: ignore[attr-defined]
    assert [one.connection_pool.connection_kwargs["socket_timeout"] for one in manager.sentinels] == [1.5, 1.5]


def test_a_client_of_the_newer_protocol_works(redis_url: str) -> None:
    with Redis.from_url(redis_url, protocol=3) as theirs:
        queue = NodeQueue(theirs, "shop")
        queue.ping()
        queue.redis.zadd("shop:scores", {"a": 1.0})
        assert queue.redis.zrange("shop:scores", 0, -1, withscores=True) == [(b"a", 1.0)]
        queue.close()
