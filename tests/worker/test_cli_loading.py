"""`module:engine` becomes an engine, or an error that says which part of it is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spanloom.cli.options.loading import load_engine
from spanloom.engine.errors import ConfigurationError

ENGINE = """
from spanloom.engine import NodeRegistry, WorkflowEngine

registry = NodeRegistry()
engine = WorkflowEngine(registry, "sqlite:///unused.db", "redis://localhost")
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Write modules into the working directory; what is imported from there is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write


def refusal(target: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_engine(target)
    return str(caught.value)


def test_a_module_in_the_working_directory_is_found(write: Callable[[str, str], None]) -> None:
    write("found_here", ENGINE)
    engine = load_engine("found_here:engine")
    assert engine.store.url.endswith("unused.db")


def test_an_attribute_of_an_attribute_is_found(write: Callable[[str, str], None]) -> None:
    write("nested_app", f"{ENGINE}\nclass app:\n    main = engine\n")
    assert load_engine("nested_app:app.main") is load_engine("nested_app:engine")


@pytest.mark.parametrize("target", ["orders", "orders:", ":engine", ""])
def test_another_form_is_refused_with_the_right_one(target: str) -> None:
    assert "MODULE:ENGINE" in refusal(target)


def test_a_missing_module_is_named_with_where_it_was_looked_for(
    write: Callable[[str, str], None], tmp_path: Path
) -> None:
    message = refusal("no_such_module:engine")
    assert "no module 'no_such_module'" in message
    assert str(tmp_path) in message


def test_a_missing_package_of_a_dotted_module_is_named() -> None:
    assert "no module 'no_such_package'" in refusal("no_such_package.tasks:engine")


def test_a_module_that_lacks_a_module_of_its_own_failed_to_import(write: Callable[[str, str], None]) -> None:
    write("lacks_one", "import no_such_dependency")
    message = refusal("lacks_one:engine")
    assert "importing 'lacks_one' failed at" in message
    assert "No module named 'no_such_dependency'" in message


def test_a_module_that_raises_is_told_with_its_line(write: Callable[[str, str], None]) -> None:
    write("raises_one", "\n1 / 0\n")
    assert "raises_one.py:2: ZeroDivisionError: division by zero" in refusal("raises_one:engine")


def test_a_missing_attribute_gets_a_suggestion(write: Callable[[str, str], None]) -> None:
    write("misspelt_one", ENGINE)
    assert "has no 'engin'; did you mean misspelt_one:engine?" in refusal("misspelt_one:engin")


def test_something_else_than_an_engine_is_named_by_its_type(write: Callable[[str, str], None]) -> None:
    write("another_thing", ENGINE)
    message = refusal("another_thing:registry")
    assert (
        message == "another_thing:registry is a NodeRegistry, not a WorkflowEngine; did you mean another_thing:engine?"
    )


def test_a_module_without_an_engine_says_how_to_make_one(write: Callable[[str, str], None]) -> None:
    write("has_none", "x = 1")
    assert "engine = WorkflowEngine(…)" in refusal("has_none:engine")
