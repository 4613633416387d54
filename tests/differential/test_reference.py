"""The reference knows the models of workflows and nothing else of the engine that it is compared with."""

from __future__ import annotations

import ast
from pathlib import Path

HERE = Path(__file__).parent
PARTS = ("reference", "rules", "outcome")
MAY_IMPORT = {"spanloom.engine.definitions", "jmespath", "jmespath.exceptions"} | {
    f"differential.{one}" for one in PARTS
}
STANDARD = {"__future__", "collections.abc", "dataclasses", "typing"}


def test_the_reference_imports_the_models_and_nothing_else() -> None:
    imported = set()
    for part in PARTS:
        for node in ast.walk(ast.parse((HERE / f"{part}.py").read_text())):
            if isinstance(node, ast.ImportFrom):
                imported.add(node.module)
            elif isinstance(node, ast.Import):
                imported.update(name.name for name in node.names)

    assert imported - STANDARD - MAY_IMPORT == set()
    assert "spanloom.engine.definitions" in imported
