"""The settings of an engine, by default from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from spanloom.engine.errors import ConfigurationError
from spanloom.engine.urls import shown_url

__all__ = ["Settings"]


class Settings(BaseSettings):
    """The settings of an engine. `SPANLOOM_*` are read once, and passed down as this frozen value.

    - `namespace` is part of the names of the RQ queues (`{namespace}.{queue}`), of our Redis keys and of the Postgres
      schema, so that several applications can share one Redis and one database.
    - `payload_limit_bytes` bounds one payload (an execution's input, a node's data), `join_limit_bytes` the sum of the
      payloads that reach one node.
    - `max_depth` bounds the number of executions in a line of parents and children.

    A variable with an empty value counts as not set.
    """

    model_config = SettingsConfigDict(env_prefix="SPANLOOM_", env_ignore_empty=True, frozen=True, extra="ignore")

    store_url: str | None = Field(default=None, repr=False)  # a URL may hold a password
    redis_url: str = Field(default="redis://localhost:6379/0", repr=False)
    namespace: str = Field(default="spanloom", pattern=r"^[a-z][a-z0-9_]{0,40}$")
    payload_limit_bytes: int = Field(default=1024 * 1024, ge=1024)
    join_limit_bytes: int = Field(default=64 * 1024 * 1024, ge=1024)
    max_depth: int = Field(default=10, ge=1, le=1000)
    log_format: Literal["auto", "json", "console"] = "auto"

    @classmethod
    def from_environment(cls) -> Settings:
        """Read the environment. Raises ConfigurationError, which names each wrong variable."""
        try:
            return cls()
        except ValidationError as error:
            wrong = [
                f"SPANLOOM_{str(problem['loc'][0]).upper()}={_shown(problem)!r}: {problem['msg']}"
                for problem in error.errors()
            ]
            raise ConfigurationError(f"the environment is wrong: {'; '.join(wrong)}") from error


def _shown(problem: Mapping[str, Any]) -> Any:
    """Return the value of a variable, without the password if it is a URL."""
    return shown_url(str(problem["input"])) if str(problem["loc"][0]).endswith("_url") else problem["input"]
