"""The probe: whether Redis allows the commands that are needed, found by sending each of them to keys of its own."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Sequence
from typing import Any

from redis import Redis
from redis.exceptions import NoScriptError, ResponseError

from spanloom.engine.queue.keys import RedisKeys
from spanloom.engine.queue.redis_refusals import is_of_one_key

__all__ = ["RedisProbe"]

_SECONDS = 60  #: after which Redis forgets the keys of a probe that did not come to its end
_SCRIPT = """
local found = {}
local function try(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then found[#found + 1] = ARGV[1] .. ' ' .. answer.err end
end
try('RPUSH', KEYS[1], 'a')
try('LINDEX', KEYS[1], 0)
try('LRANGE', KEYS[1], 0, 0)
try('LTRIM', KEYS[1], 0, 0)
try('LPOP', KEYS[1])
try('LPUSH', KEYS[1], 'a')
try('HSET', KEYS[2], 'b', 'c')
try('HGET', KEYS[2], 'b')
try('HMGET', KEYS[2], 'b')
try('EXPIRE', KEYS[2], 60)
try('ZADD', KEYS[3], 1, 'd')
try('ZCARD', KEYS[3])
try('ZRANGE', KEYS[3], 0, 0)
try('ZREMRANGEBYRANK', KEYS[3], 0, 0)
try('ZREM', KEYS[3], 'd')
try('PERSIST', KEYS[2])
try('SADD', KEYS[5], 'a')
try('SREM', KEYS[5], 'a')
try('EXISTS', KEYS[5])
try('DEL', KEYS[1], KEYS[2], KEYS[3])
try('PUBLISH', KEYS[4], 'e')
return found
"""
_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()  # as Redis names scripts


class RedisProbe:
    """The check of one namespace. The commands of engines are always checked, those of workers once that is wanted.

    It writes to keys of its own, under both prefixes, and deletes them. Nothing of it is seen by RQ's tools.
    """

    def __init__(self, client: Redis, keys: RedisKeys, namespace: str) -> None:
        self._client: Any = client
        self._keys = keys
        self._name = f"{namespace}.probe-{secrets.token_hex(4)}"  # one for all checks: what is left is little
        self._lock = threading.Lock()
        self.of_worker = False

    def check(self) -> None:
        """Return if Redis does all that is needed. Raises the errors of redis-py.

        A refusal is a ResponseError of the first refused command's class, which names all that are refused.
        """
        name = self._name
        job, waiting, own = self._keys.job(name), self._keys.queue(name), f"{self._keys.own}:probe:{name}"
        ordered, channel = self._keys.started(name), self._keys.ended_channel("probe")
        commands: list[Sequence[Any]] = [
            ("PING",),
            ("GET", self._keys.epoch),
            ("SET", own, "a", "EX", _SECONDS),
            ("HSET", job, "a", "b"),
            ("EXPIRE", job, _SECONDS),
            ("RPUSH", waiting, "a", "b"),
            ("EXPIRE", waiting, _SECONDS),
            ("LLEN", waiting),
            ("SMEMBERS", self._keys.queues),
            ("PUBLISH", channel, "probe"),
        ]
        if self.of_worker:
            keys = (f"{waiting}-2", f"{job}-2", f"{ordered}-2", channel, f"{own}-2")
            commands += [
                ("EVAL", _SCRIPT, len(keys), *keys, "EVAL"),
                ("EVALSHA", _SHA, len(keys), *keys, "EVAL"),
                ("BLPOP", waiting, "0.01"),
                ("LPUSH", waiting, "a"),
                ("ZADD", ordered, 1, "a"),
                ("EXPIRE", ordered, _SECONDS),
                ("ZRANGE", ordered, 0, -1),
                ("ZREM", ordered, "a"),
                ("HINCRBY", job, "c", 1),
                ("HEXISTS", job, "c"),
                ("PERSIST", job),
                ("EXISTS", self._keys.queues),
                ("RENAME", job, own),
                ("TYPE", own),
                ("SADD", f"{own}-2", "a"),
                ("SREM", f"{own}-2", "a"),
                ("XADD", f"{own}-3", "*", "a", "b"),
                ("MULTI",),
                ("EXEC",),
            ]
        commands.append(("DEL", job, waiting, own, f"{own}-3", ordered))
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        with self._lock:
            answers = pipeline.execute(raise_on_error=False)
        refused = [(str(command[0]), a) for command, a in zip(commands, answers, strict=True) if _failed(a)]
        in_script = [text.decode(errors="replace") for a in answers if isinstance(a, list) for text in _texts(a)]
        if refused:
            first = refused[0][1]
            raise _like(first, f"{', '.join(dict.fromkeys(name for name, _ in refused))}: {first}") from first
        if in_script:
            raise ResponseError("; ".join(in_script[:3]))


def _failed(answer: object) -> bool:
    return isinstance(answer, Exception) and not (is_of_one_key(answer) or isinstance(answer, NoScriptError))


def _like(error: Exception, text: str) -> Exception:
    try:
        return type(error)(text)
    except Exception:  # some parse their text
        return ResponseError(text)


def _texts(answer: list[Any]) -> list[bytes]:
    return [one for one in answer if isinstance(one, bytes) and one.startswith(b"EVAL ")]
