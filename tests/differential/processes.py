"""Runs drawn workflows on real worker processes: `spanloom worker differential.processes:engine`, on the real clock."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from redis import Redis

from chaos.processes import ProcessGroup
from differential.app import Board, make_registry
from differential.runner import Runner
from differential.workflows import CREWS
from spanloom.engine import NodeContext, WorkflowEngine

WORKERS = 2
TIMEOUT_SECONDS = 30.0
_LOOK_SECONDS = 0.01
_SHORT_SECONDS = 0.02
_BOARD = "DIFFERENTIAL_BOARD"  #: the variable that names the Redis of the board


class SharedBoard(Board):
    """A board that the handlers of several processes share: in Redis, under keys of its own."""

    def __init__(self, redis_url: str) -> None:
        self._redis: Any = Redis.from_url(redis_url)

    def heal(self, family: str) -> None:
        """See Board.heal."""
        self._redis.sadd("board:healed", family)

    def is_healed(self, family: str) -> bool:
        """See Board.is_healed."""
        return bool(self._redis.sismember("board:healed", family))

    def note(self, ctx: NodeContext, healed: bool) -> int:
        """See Board.note."""
        self._redis.hincrby(_calls(ctx.execution_id, healed), f"{ctx.node_id}.{ctx.item}", 1)
        return int(self._redis.hincrby(f"board:attempts:{healed}", ctx.idempotency_key + f".{ctx.attempt}", 1)) - 1

    def calls(self, execution_id: str, healed: bool) -> Counter[tuple[str, int]]:
        """See Board.calls."""
        found = self._redis.hgetall(_calls(execution_id, healed))
        split = ((run.decode().rpartition("."), int(times)) for run, times in found.items())
        return Counter({(node_id, int(item)): times for (node_id, _, item), times in split})

    def close(self) -> None:
        """Give up its connections."""
        self._redis.close()


def _calls(execution_id: str, healed: bool) -> str:
    return f"board:calls:{execution_id}:{healed}"


def hurried(case: dict[str, Any]) -> dict[str, Any]:
    """Return a case whose delays are over in a moment: the clock of several processes does not leap."""
    workflows = [{**one, "nodes": [_hurried(node) for node in one["nodes"]]} for one in case["workflows"]]
    return {**case, "workflows": workflows}


def _hurried(node: dict[str, Any]) -> dict[str, Any]:
    config = node["config"]
    if node["type"] != "delay" or config.get("expression") == "input.nothing":  # that one fails
        return node
    return {**node, "config": {"seconds": min(config.get("seconds", _SHORT_SECONDS), _SHORT_SECONDS)}}


@contextmanager
def process_runner(store_url: str, redis_url: str, folder: Path) -> Iterator[Runner]:
    """Run worker processes over one store while the block lasts."""
    environment = {
        "SPANLOOM_STORE_URL": store_url,
        "SPANLOOM_REDIS_URL": redis_url,
        "SPANLOOM_LOG_FORMAT": "json",
        _BOARD: redis_url,
    }

    def command(place: int, name: str) -> list[str]:
        queues = ",".join(CREWS[place:] + CREWS[:place])
        options = ["--queues", queues, "--concurrency", "3", "--stall", "0"]
        return ["spanloom.cli", "worker", "differential.processes:engine", *options]

    board = SharedBoard(redis_url)
    group = ProcessGroup("worker", WORKERS, command, environment, folder)
    with ExitStack() as stack:
        stack.callback(board.close)
        engine = stack.enter_context(WorkflowEngine(make_registry(board), store_url, redis_url))
        stack.callback(_close, group)
        group.start()
        group.wait_ready()
        yield Runner(engine, board, TIMEOUT_SECONDS, threading.Condition(), _LOOK_SECONDS)


def _close(group: ProcessGroup) -> None:
    assert group.close() == []
    assert group.exits == [], "a worker has ended by itself"


if _BOARD in os.environ:
    engine = WorkflowEngine(make_registry(SharedBoard(os.environ[_BOARD])))
