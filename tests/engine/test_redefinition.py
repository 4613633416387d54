"""A notebook cell that runs again replaces what it had defined; two things of one name at two places are refused."""

from __future__ import annotations

import functools
import importlib
import operator
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer

from spanloom.engine import ConfigurationError, NodeRegistry, WorkflowBuilder, WorkflowEngine, WorkflowInvalid
from spanloom.engine.handlers.redefinition import is_redefinition
from spanloom.stores import InMemoryExecutionStore


class Notebook:
    """Cells, run in one namespace as a kernel does."""

    def __init__(self, **names: Any) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__", **names}
        self.count = 0

    def cell(self, text: str) -> Any:
        self.count += 1
        exec(compile(text, f"<cell {self.count}>", "exec"), self.names)
        return self.names


@pytest.fixture
def notebook() -> Notebook:
    imports = "from spanloom.engine import *\nimport functools\nfrom pydantic import BaseModel\n"
    made = Notebook()
    made.cell(imports)
    return made


# ---- the registry ----


def test_the_function_of_a_cell_that_runs_again_stands(notebook: Notebook) -> None:
    registry = notebook.cell("registry = NodeRegistry()")["registry"]
    for answer in (1, 2, 2):
        notebook.cell(f"@registry.node('greet')\ndef greet(data):\n    return {answer}")
    assert registry.handler("greet").function(None) == 2
    notebook.cell("\n\n@registry.node('greet')\nasync def greet(data): ...")  # at another line, and async now
    assert registry.handler("greet").is_async


@pytest.mark.parametrize(
    "handler",
    [
        "lambda data: {n}",
        "functools.partial(lambda data, add: add, add=7)",
        "functools.wraps(greet)(lambda *args: greet(*args))",
        "Greeter().greet",
        "Greeter()",
        "Configured(7)",
    ],
)
def test_what_is_not_a_plain_function_stands_too(notebook: Notebook, handler: str) -> None:
    registry = notebook.cell("registry = NodeRegistry()")["registry"]
    for number in (1, 2):
        notebook.cell(
            f"def greet(data): return {number}\n"
            f"class Greeter:\n    def __call__(self, data): ...\n    def greet(self, data): ...\n"
            f"class Configured:\n    def __init__(self, n): self.n = n\n    def __call__(self, data): ...\n"
            f"handler = {handler.replace('{n}', str(number))}\nregistry.register('greet', handler)"
        )
    assert registry.handler("greet").function is notebook.names["handler"] or "Greeter" in handler


def test_a_config_model_that_is_defined_again_stands(notebook: Notebook) -> None:
    registry = notebook.cell("registry = NodeRegistry()")["registry"]
    for kind in ("int", "str"):
        notebook.cell(f"class Config(BaseModel):\n    n: {kind}")
        notebook.cell("@registry.node('greet', config=Config)\ndef greet(data): ...")
    assert registry.handler("greet").config_model is notebook.names["Config"]


class Mailer:
    def __init__(self, host: str) -> None:
        self.host = host

    def send(self, data: Any) -> None: ...

    def __call__(self, data: Any) -> None: ...


def one(data: Any) -> None: ...


def made(answer: Any) -> Callable[..., Any]:
    def greet(data: Any) -> Any:
        return answer

    return greet


def made_elsewhere(answer: Any) -> Callable[..., Any]:
    def greet(data: Any) -> Any:
        return answer

    greet.__qualname__ = made(1).__qualname__
    return greet


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (one, made(1)),
        (made(1), made_elsewhere(1)),  # of the same module and name, at another line
        (Mailer("a").send, Mailer("b").send),
        (Mailer("a"), Mailer("b")),
        (Mailer("a"), Mailer("a").send),
        (functools.partial(one, 1), functools.partial(one, 2)),
        (functools.partial(one), one),
        (one, operator.itemgetter("x")),
    ],
)
def test_two_things_at_two_places_are_not_the_same(old: Any, new: Any) -> None:
    assert not is_redefinition(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (made(1), made(2)),
        (Mailer("a").send, Mailer("a").send),
        (Mailer("a"), Mailer("a")),
        (functools.partial(one, 1), functools.partial(one, 1)),
        (functools.partial(made(1), x=1), functools.partial(made(2), x=1)),
    ],
)
def test_the_same_definition_once_more_is_the_same(old: Any, new: Any) -> None:
    assert is_redefinition(old, new)


def test_functions_of_two_places_under_one_type_are_refused(notebook: Notebook) -> None:
    registry = NodeRegistry()
    registry.register("greet", made(1))
    for other in (one, made_elsewhere(1)):
        with pytest.raises(ConfigurationError, match="node type 'greet' has two handlers"):
            registry.register("greet", other)
    notebook.names["registry"] = registry
    with pytest.raises(ConfigurationError, match="node type 'greet' has two handlers"):
        notebook.cell("@registry.node('greet')\ndef greet(data): ...")  # of another module


def test_a_module_that_is_reloaded_after_a_change_registers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file, registry = tmp_path / "reloaded_handlers.py", NodeRegistry()
    monkeypatch.setattr("builtins.shared_registry", registry, raising=False)
    text = "@shared_registry.node('greet')\ndef greet(data): return {n}\n"
    file.write_text(text.format(n=1))
    module = importlib.import_module("reloaded_handlers")
    file.write_text("# a line more, and another one\n\n\n" + text.format(n=2))
    importlib.reload(module)
    assert registry.handler("greet").function(None) == 2
    file.write_text(text.format(n=3) + text.format(n=4))  # twice in one file
    with pytest.raises(ConfigurationError, match="node type 'greet' has two handlers"):
        importlib.reload(module)
    del sys.modules["reloaded_handlers"]


def test_options_of_a_cell_that_runs_again_stand(notebook: Notebook) -> None:
    registry = notebook.cell("registry = NodeRegistry()\ndef greet(data): ...")["registry"]
    for executor in ("thread", "process"):
        notebook.cell(f"registry.register('greet', greet, executor={executor!r})")
    assert registry.handler("greet").executor == "process"


# ---- the builder ----


def test_a_node_of_a_cell_that_runs_again_stands_with_its_options_and_its_place(notebook: Notebook) -> None:
    flow = notebook.cell("flow = WorkflowBuilder('flow')")["flow"]
    first = "@flow.node({options})\ndef first(data):\n    return {n}"
    notebook.cell(first.format(options="", n=1))
    notebook.cell("@flow.node(inputs=first)\ndef second(data): ...")
    notebook.cell("wait = flow.delay('wait', 60, inputs=second)\nflow.child('below', 'other', inputs=wait)")
    notebook.cell(first.format(options="max_attempts=3", n=2))
    notebook.cell("wait = flow.delay('wait', 30, inputs=first)\nflow.child('below', 'other', inputs=wait)")

    nodes = {node.id: node for node in flow.workflow.nodes}
    assert list(nodes) == ["first", "second", "wait", "below"]
    assert nodes["first"].retry.max_attempts == 3
    assert (nodes["wait"].parents, nodes["wait"].config) == (("first",), {"seconds": 30})
    assert flow.registry.handler("flow.first").function(None) == 2
    with pytest.raises(WorkflowInvalid, match="another node has that id"):
        flow.delay("wait", 30)  # in a file it is a mistake


def test_nodes_of_a_loop_without_ids_are_refused() -> None:
    flow = WorkflowBuilder[Any]("flow")
    sources = [flow.add("a", "t"), flow.add("b", "t")]
    with pytest.raises(WorkflowInvalid, match="node 'greet': another node has that id"):
        for source in sources:
            flow.node(inputs=source)(made(source))
    with pytest.raises(WorkflowInvalid, match="node 'one': another node has that id"):
        for _ in range(2):
            flow.node(one)


# ---- an engine that has the older one ----


def start(engine: WorkflowEngine, flow: WorkflowBuilder[Any], data: Any = None) -> Any:
    return engine.run(flow, data, timeout=30)


def test_an_engine_runs_the_newer_function_and_the_newer_builder(notebook: Notebook) -> None:
    cells = (
        "flow = WorkflowBuilder('flow', input={kind})",
        "@flow.node({options})\ndef first(data):\n    return [data, {n}]",
        "@flow.node(inputs=first)\ndef second(data):\n    return [data, {n}]",
    )
    make, first, second = cells
    flow = notebook.cell(make.format(kind="int"))["flow"]
    notebook.cell(first.format(options="", n=1))
    engine = WorkflowEngine(flow, InMemoryExecutionStore(), FakeRedis(server=FakeServer()))
    with engine, engine.start_workers(1):
        assert start(engine, flow, 7) == [7, 1]
        notebook.cell(first.format(options="", n=2))
        assert engine.wait(engine.enqueue_workflow("flow", 7), timeout=30).output == [7, 2]  # by its id, too
        notebook.cell(second.format(n=3))
        assert start(engine, flow, 7) == [[7, 2], 3]
        notebook.cell(first.format(options="max_attempts=2", n=4))
        assert start(engine, flow, 7) == [[7, 4], 3]

        again = notebook.cell(make.format(kind="str"))["flow"]
        notebook.cell(first.format(options="", n=5))
        assert start(engine, again, "x") == ["x", 5]
        versions = [version.version for version in engine.store.list_workflow_versions("flow").items]
        assert versions == [4, 3, 2, 1]


def test_another_builder_of_the_same_id_is_refused_by_an_engine() -> None:
    flow, other, empty = WorkflowBuilder[Any]("flow"), WorkflowBuilder[Any]("flow"), WorkflowBuilder[Any]("flow")
    flow.node(id="n")(one)
    other.node(id="n")(made(1))
    empty.add("n", "flow.n")
    engine = WorkflowEngine(flow, InMemoryExecutionStore(), FakeRedis(server=FakeServer()))
    with engine:
        for wrong in (other, empty):
            with pytest.raises(
                ConfigurationError, match="was not given to this engine, which has another builder of that"
            ):
                engine.start(wrong)
        assert engine.builders == {"flow": flow}
        with pytest.raises(ConfigurationError, match=r"workflow 'new' was not given to this engine: WorkflowEngine"):
            engine.start(WorkflowBuilder("new"))
