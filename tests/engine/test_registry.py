"""A registry holds one handler for each node type, and says which two are in each other's way."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from spanloom.engine.errors import ConfigurationError, UnknownNodeType
from spanloom.engine.handlers.registry import NodeRegistry


def fetch(ctx: Any) -> None: ...


def other(ctx: Any) -> None: ...


class Config(BaseModel):
    url: str


def test_a_decorated_function_is_registered_and_stays_as_it_is() -> None:
    registry = NodeRegistry()
    assert registry.node("fetch")(fetch) is fetch
    assert registry.handler("fetch").function is fetch
    assert registry.node("configured", config=Config)(fetch) is fetch
    assert registry.handler("configured").config_model is Config
    assert registry.types == {"fetch", "configured"}
    assert "fetch" in registry
    assert "other" not in registry


def test_an_unknown_type_is_refused_with_those_there_are() -> None:
    registry = NodeRegistry()
    registry.register("fetch", fetch)
    with pytest.raises(UnknownNodeType) as caught:
        registry.handler("fecth")
    assert caught.value.node_type == "fecth"
    assert caught.value.known == ("fetch",)


def test_the_same_function_again_is_no_error() -> None:
    registry = NodeRegistry()
    registry.register("fetch", fetch, Config)
    first = registry.handler("fetch")
    registry.register("fetch", fetch, Config)
    assert registry.handler("fetch") is first


@pytest.mark.parametrize(("function", "config"), [(other, None), (fetch, Config)], ids=["function", "config"])
def test_another_handler_for_a_type_is_refused_naming_both(function: Any, config: Any) -> None:
    registry = NodeRegistry()
    registry.register("fetch", fetch)
    with pytest.raises(ConfigurationError) as caught:
        registry.register("fetch", function, config)
    assert str(caught.value) == (
        f"node type 'fetch' has two handlers, {__name__}.fetch and {__name__}.{function.__name__}"
        f"{' with config Config' if config else ''}; rename one type"
    )
    assert registry.handler("fetch").function is fetch
    assert registry.handler("fetch").config_model is None


def test_the_same_function_with_another_executor_is_refused() -> None:
    registry = NodeRegistry()
    registry.register("fetch", fetch)
    with pytest.raises(
        ConfigurationError, match=rf"{__name__}\.fetch and {__name__}\.fetch with executor 'process'; rename"
    ):
        registry.register("fetch", fetch, executor="process")
    assert registry.handler("fetch").executor is None


def test_a_type_needs_a_name() -> None:
    with pytest.raises(ConfigurationError, match="needs a name"):
        NodeRegistry().register("", fetch)


def test_merging_takes_the_others_handlers_over() -> None:
    ours, theirs = NodeRegistry(), NodeRegistry()
    ours.register("a", fetch)
    theirs.register("a", fetch)
    theirs.register("b", other)
    kept = ours.handler("a")

    ours.merge(theirs)

    assert ours.types == {"a", "b"}
    assert ours.handler("a") is kept
    assert theirs.types == {"a", "b"}


def test_a_merge_with_a_conflict_takes_nothing() -> None:
    ours, theirs = NodeRegistry(), NodeRegistry()
    ours.register("b", fetch)
    theirs.register("a", fetch)
    theirs.register("b", other)
    with pytest.raises(ConfigurationError, match="node type 'b' has two handlers"):
        ours.merge(theirs)
    assert ours.types == {"b"}
