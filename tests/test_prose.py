"""The language of docstrings: plain technical English, whose private turns are counted per 1,000 words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "engine": ROOT / "engine/spanloom/engine",
    "stores": ROOT / "stores/spanloom/stores",
    "worker": ROOT / "worker/spanloom/worker",
    "cli": ROOT / "worker/spanloom/cli",
}
TURNS = {
    "what": r"what",
    "speech": r"tell|tells|told|say|says|said|ask|asks|asked|hear|hears|heard",
    "who": r"who|whoever|whose",
    "somebody": r"somebody|nobody|someone|everyone",
}
LIMITS = {  # by package, in 1,000 words; each may only fall
    "engine": {"what": 0.1, "speech": 0.1, "who": 1.3, "somebody": 0.0},
    "stores": {"what": 0.4, "speech": 0.0, "who": 2.3, "somebody": 0.0},
    "worker": {"what": 2.2, "speech": 0.5, "who": 0.7, "somebody": 0.5},
    "cli": {"what": 0.6, "speech": 0.3, "who": 0.3, "somebody": 0.3},
}


def docstrings(source: str) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield node, text


def found(pattern: str, text: str) -> int:
    return len(re.findall(rf"\b(?:{pattern})\b", text, re.IGNORECASE))


def sources(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted(PACKAGES[package].rglob("*.py"))]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("turn", TURNS)
def test_docstrings_use_no_more_of_a_private_turn_than_before(package: str, turn: str) -> None:
    texts = [text for path in sources(package) for _, text in docstrings(path.read_text())]
    words = sum(len(text.split()) for text in texts)
    assert words > 4_000
    per_thousand = 1000 * sum(found(TURNS[turn], text) for text in texts) / words
    assert per_thousand <= LIMITS[package][turn], f"{turn} in {package}: {per_thousand:.2f} per 1,000 words"


@pytest.mark.parametrize(
    ("turn", "text", "times"),
    [
        ("what", "What a node returned, and what a workflow took. Whatever.", 2),
        ("speech", "Ask the store; it says that it was told. Task, essay, foretell.", 3),
        ("who", "Whoever runs, who waits, whose lease ends. The whole.", 3),
        ("somebody", "Nobody and someone.", 2),
    ],
)
def test_a_turn_is_counted_by_whole_words(turn: str, text: str, times: int) -> None:
    assert found(TURNS[turn], text) == times


def test_the_docstring_of_an_error_begins_with_when_it_is_raised() -> None:
    names = {"Exception", "BaseException", "ValueError"}
    others: list[str] = []
    count = 0
    for path in sorted(sources(*PACKAGES), key=lambda path: path.name != "errors.py"):
        for node, text in docstrings(path.read_text()):
            bases = {base.id for base in getattr(node, "bases", []) if isinstance(base, ast.Name)}
            if isinstance(node, ast.ClassDef) and bases & names:
                names.add(node.name)
                count += 1
                if not text.startswith(("Raised when ", "The base of ")):
                    others.append(f"{path.name}: {node.name}")
    assert count > 20
    assert others == []
