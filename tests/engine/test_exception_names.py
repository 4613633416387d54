"""A name in a retry policy means the class that one would import by it; one that means nothing is refused."""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import json
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from spanloom.engine import (
    NodeRegistry,
    NodeTimeout,
    RetryPolicy,
    Workflow,
    WorkflowBuilder,
    WorkflowInvalid,
    load_workflow,
)
from spanloom.engine.workflow.definitions import Node
from spanloom.engine.workflow.exception_names import NameChecks, is_named, name_of, unknown_names
from spanloom.engine.workflow.validation import find_problems


class CardDeclined(Exception):
    class Temporarily(Exception): ...


class Transient:
    """No exception, but a base of some."""


class Throttled(Transient, RuntimeError): ...


def local() -> type[Exception]:
    class Local(Exception): ...

    return Local


NAMES: list[tuple[type, str]] = [
    (redis.exceptions.ConnectionError, "redis.ConnectionError"),
    (redis.exceptions.ConnectionError, "redis.exceptions.ConnectionError"),
    (redis.exceptions.ConnectionError, "redis.exceptions.RedisError"),
    (redis.exceptions.AuthenticationError, "redis.ConnectionError"),  # a subclass, by an alias of its base
    (redis.exceptions.ConnectionError, "ConnectionError"),
    (json.JSONDecodeError, "json.JSONDecodeError"),
    (json.JSONDecodeError, "json.decoder.JSONDecodeError"),
    (json.JSONDecodeError, "ValueError"),
    (NodeTimeout, "NodeTimeout"),
    (NodeTimeout, "spanloom.engine.NodeTimeout"),
    (NodeTimeout, "spanloom.engine.errors.NodeFailure"),
    (TimeoutError, "asyncio.TimeoutError"),
    (TimeoutError, "concurrent.futures.TimeoutError"),
    (TimeoutError, "socket.timeout"),
    (TimeoutError, "builtins.TimeoutError"),
    (FileNotFoundError, "IOError"),
    (FileNotFoundError, "EnvironmentError"),
    (asyncio.CancelledError, "asyncio.CancelledError"),
    (CardDeclined, "CardDeclined"),
    (CardDeclined, f"{__name__}.CardDeclined"),
    (CardDeclined.Temporarily, "Temporarily"),
    (CardDeclined.Temporarily, "CardDeclined.Temporarily"),
    (CardDeclined.Temporarily, f"{__name__}.CardDeclined.Temporarily"),
    (Throttled, "Transient"),
    (Throttled, f"{__name__}.Transient"),
    (local(), "Local"),
    (local(), f"{__name__}.local.<locals>.Local"),
]


@pytest.mark.parametrize(("kind", "name"), NAMES, ids=str)
def test_a_class_is_known_by_every_name_under_which_it_is_imported(kind: type, name: str) -> None:
    assert is_named(kind, (name,))
    assert is_named(kind, ("KeyError", name))
    assert not is_named(kind, ("ZeroDivisionError", "json.JSONEncoder", "no.such.Error"))
    assert NameChecks().problem(name, runs_here=True) is None


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (builtins.ConnectionError, "redis.ConnectionError"),  # another class of that name
        (redis.exceptions.TimeoutError, "asyncio.TimeoutError"),
        (concurrent.futures.CancelledError, "asyncio.CancelledError"),
        (CardDeclined, "CardDeclined.Temporarily"),
    ],
)
def test_a_name_with_its_module_means_no_other_class(kind: type, name: str) -> None:
    assert not is_named(kind, (name,))


@pytest.fixture
def lazy() -> Iterator[types.ModuleType]:
    """A package that makes its names when they are first used, and must not be made to by a definition."""
    package, module = types.ModuleType("lazylib"), types.ModuleType("lazylib.errors")

    def missing(name: str) -> Any:
        raise AssertionError(f"{name} was looked up")

    package.__getattr__ = missing  # type: ignore[method-assign]
    module.Slow = type("Slow", (Exception,), {"__module__": "lazylib.errors"})  # type: ignore[attr-defined]
    sys.modules.update({"lazylib": package, "lazylib.errors": module})
    yield module
    del sys.modules["lazylib"], sys.modules["lazylib.errors"]


def test_a_name_that_its_package_makes_lazily_is_known_without_running_the_package(lazy: types.ModuleType) -> None:
    assert is_named(lazy.Slow, ("lazylib.Slow",))
    assert not is_named(lazy.Slow, ("lazylib.Fast",))
    assert not is_named(KeyError, ("lazylib.KeyError",))
    assert NameChecks().problem("lazylib.Slow", runs_here=True) is None


def test_a_class_of_the_program_is_known_by_the_name_of_its_module_when_it_is_imported(tmp_path: Any) -> None:
    program = tmp_path / "shop.py"
    program.write_text(
        "from spanloom.engine.workflow.exception_names import is_named, name_of\n"
        "class Closed(Exception): ...\n"
        "assert is_named(Closed, ('shop.Closed',)) and is_named(Closed, ('Closed',))\n"
        "assert not is_named(Closed, ('other.Closed',))\n"
        "assert name_of(Closed) == 'Closed'\n"  # the same when a worker imports it
    )
    subprocess.run([sys.executable, str(program)], check=True, timeout=60)


def test_nothing_is_imported_to_compare_a_name() -> None:
    name = "xml.sax.handler.ErrorHandler"
    code = (
        "import sys; from spanloom.engine.workflow.exception_names import is_named, unknown_names\n"
        "sys.modules.pop('xml.sax', None); sys.modules.pop('xml.sax.handler', None)\n"
        f"assert not is_named(KeyError, ({name!r},)); assert unknown_names(({name!r},)) == [{name!r}]\n"
        "assert 'xml.sax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---- registration ----


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "ConectionError",
            "no exception 'ConectionError' is defined or imported here (did you mean 'ConnectionError'?)",
        ),
        ("NoSuchThingAtAll", "no exception 'NoSuchThingAtAll' is defined or imported here; write module.Class for one"),
        ("CardDeclind", "(did you mean 'CardDeclined'?)"),
        ("redis.ConectionError", "module 'redis' has no 'ConectionError' (did you mean 'ConnectionError'?)"),
        ("json.JSONDecodeErorr", "module 'json' has no 'JSONDecodeErorr' (did you mean 'JSONDecodeError'?)"),
        ("json.decodr.JSONDecodeError", "module 'json' has no 'decodr'"),
        ("smtplib.SMTPExeption", "module 'smtplib' has no 'SMTPExeption' (did you mean 'SMTPException'?)"),
        ("spanloom.engine.NodeTimout", "module 'spanloom.engine' has no 'NodeTimout' (did you mean 'NodeTimeout'?)"),
        ("spanloom.engin.NodeTimeout", "module 'spanloom' has no 'engin'"),
        ("json.JSONDecoder", "'json.JSONDecoder' is no exception"),
        ("int", "'int' is no exception"),
        ("json.loads", "'json.loads' is no class"),
        ("json.decoder", "'json.decoder' is no class"),
        ("len", "'len' is no class"),
        ("", "'' is no name of a class; write Class or module.Class"),
        ("Connection Error", "'Connection Error' is no name of a class"),
        ("json..JSONDecodeError", "is no name of a class"),
        ("*", "'*' is no name of a class"),
    ],
)
def test_a_name_that_names_nothing_is_refused_where_its_node_runs(name: str, sentence: str) -> None:
    builder = WorkflowBuilder("w")
    builder.node(id="n", retry=RetryPolicy(max_attempts=3, retry_on=(name,)))(lambda data: None)
    (problem,) = find_problems(builder.workflow, builder.registry)
    assert problem.startswith("node 'n': its retry_on: ")
    assert sentence in problem


@pytest.mark.parametrize(
    "name",
    [
        "CardExpired",  # of a class that only the workers have
        "httpx_of_somebody.ConnectError",
        "nosuchpackage.errors.Closed",
        "ConnectError",
        "antigravity.Error",  # is not imported to look
        "shop.<locals>.Closed",
    ],
)
def test_a_name_that_workers_may_have_is_accepted_where_its_node_does_not_run(name: str) -> None:
    workflow = Workflow(id="w", nodes=[Node(id="n", type="t", retry=RetryPolicy(no_retry_on=(name,)))])
    assert find_problems(workflow) == []
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("name", ["ConectionError", "Valueerror", "NotImplementedErorr", "NodeTimeouts", "int", "a-b"])
def test_a_slip_in_a_built_in_name_is_refused_everywhere(name: str, tmp_path: Any) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(f"id: w\nnodes: [{{id: n, type: t, retry: {{no_retry_on: {name}}}}}]\n")
    (problem,) = find_problems(load_workflow(file))
    assert problem.startswith("node 'n': its no_retry_on: ")


def test_a_package_that_is_not_imported_is_accepted_where_the_node_runs_too() -> None:
    builder = WorkflowBuilder("w")
    builder.node(id="n", retry=RetryPolicy(retry_on=("nosuchpackage.Closed",)))(lambda data: None)
    assert find_problems(builder.workflow, builder.registry) == []
    assert unknown_names(builder.workflow.nodes[0].retry.retry_on) == ["nosuchpackage.Closed"]


def test_classes_stand_for_their_names() -> None:
    policy = RetryPolicy(
        retry_on=(ConnectionError, redis.TimeoutError, CardDeclined, "KeyError"), no_retry_on=NodeTimeout
    )
    assert policy.retry_on == (
        "ConnectionError",
        "redis.exceptions.TimeoutError",
        f"{__name__}.CardDeclined",
        "KeyError",
    )
    assert policy.no_retry_on == ("NodeTimeout",)
    assert RetryPolicy(retry_on="KeyError").retry_on == ("KeyError",)
    assert RetryPolicy(retry_on=[KeyError]) == RetryPolicy(retry_on=("KeyError",))
    assert name_of(local()) == f"{__name__}.local.<locals>.Local"


def test_a_class_that_is_no_exception_is_refused_by_the_registration() -> None:
    workflow = Workflow(id="w", nodes=[Node(id="n", type="t", retry=RetryPolicy(retry_on=(int,)))])  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(WorkflowInvalid, match="its retry_on: 'int' is no exception"):
        from spanloom.engine.workflow.validation import validate

        validate(workflow, NodeRegistry())
