"""The reference is small enough to be checked by reading, and knows nothing of the engine it is compared with."""

from __future__ import annotations

import ast
from pathlib import Path

REFERENCE = Path(__file__).with_name("reference.py")
STANDARD = {"__future__", "collections.abc", "dataclasses", "typing"}


def test_the_reference_imports_the_models_and_nothing_else() -> None:
    nodes = list(ast.walk(ast.parse(REFERENCE.read_text())))
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}

    assert imported - STANDARD == {"spanloom.engine.workflow.definitions"}


def test_the_reference_has_under_200_lines() -> None:
    assert len(REFERENCE.read_text().splitlines()) < 200
