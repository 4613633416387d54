"""The names of keys: RQ's are those that RQ gives them, and a prefix that RQ does not know is refused."""

from __future__ import annotations

import pytest
from rq import Queue, Worker, defaults
from rq.job import Job
from rq.registry import FailedJobRegistry, StartedJobRegistry

from spanloom.engine.errors import ConfigurationError
from spanloom.engine.queue.keys import RedisKeys
from spanloom.engine.queue.node_queue import NodeQueue


def test_rqs_keys_have_the_names_that_rq_gives_them() -> None:
    keys = RedisKeys.of("shop")

    assert keys.queues == Queue.redis_queues_keys
    assert keys.queue("shop.default") == Queue.redis_queue_namespace_prefix + "shop.default"
    assert keys.job("an-id") == Job.key_for("an-id")
    assert keys.worker("a-name") == Worker.redis_worker_namespace_prefix + "a-name"
    assert keys.started("shop.default") == StartedJobRegistry.key_template.format("shop.default")
    assert keys.failed("shop.default") == FailedJobRegistry.key_template.format("shop.default")


def test_the_keys_of_a_namespace_begin_with_its_name_and_with_a_prefix_that_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(defaults, "RQ_KEY_PREFIX", "rq", raising=False)
    usual = RedisKeys.of("shop")
    monkeypatch.setattr(defaults, "RQ_KEY_PREFIX", "{apps}", raising=False)
    prefixed = RedisKeys.of("shop")

    assert (usual.epoch, usual.ended_channel("e"), usual.queue("q")) == ("shop:epoch", "shop:ended:e", "rq:queue:q")
    assert (prefixed.epoch, prefixed.ended_channel("e"), prefixed.queue("q")) == (
        "{apps}:shop:epoch",
        "{apps}:shop:ended:e",
        "{apps}:queue:q",
    )


def test_a_prefix_that_the_installed_rq_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(defaults, "RQ_KEY_PREFIX", raising=False)  # as in RQ 2
    monkeypatch.setenv("RQ_KEY_PREFIX", "{apps}")

    with pytest.raises(ConfigurationError, match=r"RQ_KEY_PREFIX is '\{apps\}', but RQ .* install rq>=3"):
        NodeQueue("redis://localhost", "shop")


@pytest.mark.parametrize("value", [None, "rq"])
def test_an_rq_without_a_prefix_is_accepted_where_none_is_wanted(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delattr(defaults, "RQ_KEY_PREFIX", raising=False)
    monkeypatch.delenv("RQ_KEY_PREFIX", raising=False)
    if value is not None:
        monkeypatch.setenv("RQ_KEY_PREFIX", value)

    assert RedisKeys.of("shop").queue("q") == "rq:queue:q"
