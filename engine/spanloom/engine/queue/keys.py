"""The names of all keys and channels in Redis: RQ's own and those of a namespace, each under RQ's key prefix."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rq import defaults
from rq.version import VERSION

from spanloom.engine.errors import ConfigurationError

__all__ = ["RedisKeys", "key_prefix"]

_VARIABLE = "RQ_KEY_PREFIX"
_USUAL = "rq"  # RQ's key prefix unless the environment sets another, and always before RQ 3


def key_prefix() -> str:
    """Return the prefix of RQ's keys in this process.

    Raises ConfigurationError if the environment sets a prefix and the installed RQ has none: other processes, with
    RQ 3, would use it.
    """
    known: str | None = getattr(defaults, _VARIABLE, None)
    if known is not None:
        return known
    if (wanted := os.environ.get(_VARIABLE, _USUAL)) != _USUAL:
        raise ConfigurationError(
            f"{_VARIABLE} is {wanted!r}, but RQ {VERSION} has no key prefix; install rq>=3, or unset the variable"
        )
    return _USUAL


@dataclass(frozen=True, slots=True)
class RedisKeys:
    """The keys and channels of one namespace.

    RQ's keys are `{prefix}:queue:{list}` and so on. Those of the namespace are `{namespace}:epoch` and so on, and
    `{prefix}:{namespace}:epoch` if the environment sets a prefix. With one hash tag in it, such as `{spanloom}`, all
    of them are in one slot of a Redis Cluster.
    """

    prefix: str  # of RQ's keys
    own: str  # of the namespace's own keys

    @classmethod
    def of(cls, namespace: str) -> RedisKeys:
        """Return the keys of a namespace in this process. Raises ConfigurationError, as `key_prefix` does."""
        prefix = key_prefix()
        return cls(prefix, namespace if prefix == _USUAL else f"{prefix}:{namespace}")

    @property
    def queues(self) -> str:
        """The set of the keys of all lists, as RQ keeps it."""
        return f"{self.prefix}:queues"

    def queue(self, list_name: str) -> str:
        """The list of the job ids that wait."""
        return f"{self.prefix}:queue:{list_name}"

    def job(self, job_id: str) -> str:
        """The hash of a job."""
        return f"{self.prefix}:job:{job_id}"

    def started(self, list_name: str) -> str:
        """The sorted set of a list's running jobs, each with the time at which RQ's tools take it for abandoned."""
        return f"{self.prefix}:wip:{list_name}"

    def failed(self, list_name: str) -> str:
        """The sorted set of the jobs of a list that RQ's tools show as failed."""
        return f"{self.prefix}:failed:{list_name}"

    def worker(self, name: str) -> str:
        """The hash of a worker that RQ's tools show."""
        return f"{self.prefix}:worker:{name}"

    @property
    def epoch(self) -> str:
        """The key that is missing when Redis lost its data."""
        return f"{self.own}:epoch"

    @property
    def sweep(self) -> str:
        """The key that is there for a moment after a worker began to sweep the store."""
        return f"{self.own}:sweep"

    def displaced(self, key: str) -> str:
        """The key to which a key of ours is moved if it is of another type than ours."""
        return f"{self.own}:displaced:{key}"

    def wake(self, worker_name: str) -> str:
        """The list that ends a worker's blocking read."""
        return f"{self.own}:wake:{worker_name}"

    def ended_channel(self, execution_id: str) -> str:
        """The pub/sub channel on which an execution's end is published."""
        return f"{self.own}:ended:{execution_id}"

    def changed_channel(self, execution_id: str) -> str:
        """The pub/sub channel on which an execution's changes are published."""
        return f"{self.own}:changed:{execution_id}"
