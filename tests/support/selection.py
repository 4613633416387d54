"""Which tests run over which store: every behaviour over one of them, and over the others in `make torture`.

The stores' semantics are the business of the conformance suite, which every store passes in every run. A behaviour end
to end is run over one store, chosen by a hash of its name that is the same in every process and every run, so that each
store sees a third of them. Tests of what a store's processes do to each other, marked `every_store`, meet all stores;
what makes sense over some of them only is marked `stores`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

__all__ = ["KINDS", "chosen", "kind_of", "kinds_for", "name_of", "select_stores"]

KINDS = ("memory", "sqlite", "postgres")
_TESTS = Path(__file__).parent.parent
#: Where the memory store is left to torture: it is the SQLite store over `:memory:`, which these try in full anyway.
_LIKE_SQLITE = ("model/test_model.py", "differential/test_differential.py")


def chosen(name: str, kinds: Sequence[str]) -> str:
    """Return the one of `kinds` over which the test of this name is run."""
    return kinds[zlib.crc32(name.encode()) % len(kinds)]


def select_stores(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the stores that a test is not for, and mark as torture those that only `make torture` runs it over.

    All that it is for are run if tests are named, by -k or an id, and with --every-store.
    """
    found = [(item, kind) for item in items if (kind := kind_of(item)) is not None]
    others = {item for item, kind in found if kind not in kinds_for(item)}
    if others:
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=list(others))
    named = config.option.keyword or any("::" in one for one in config.args)
    if config.option.every_store or (named and "torture" not in config.option.markexpr):
        return
    behaviours: dict[str, dict[str, pytest.Item]] = {}
    for item, kind in found:
        path = item.path.relative_to(_TESTS).as_posix()
        if kind == "memory" and path in _LIKE_SQLITE:
            item.add_marker(pytest.mark.torture)
        if path.startswith("e2e/") and item not in others and not item.get_closest_marker("every_store"):
            behaviours.setdefault(name_of(item, kind), {})[kind] = item
    for name, over in behaviours.items():
        kept = chosen(name, [kind for kind in KINDS if kind in over])
        for kind, item in over.items():
            if kind != kept:
                item.add_marker(pytest.mark.torture)


def kinds_for(item: pytest.Item) -> Sequence[str]:
    """Return the stores that a test is for."""
    mark = item.get_closest_marker("stores")
    return KINDS if mark is None else mark.args


def kind_of(item: pytest.Item) -> str | None:
    """Return the store that a test is parametrised with, if there is one."""
    params = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return next((one for one in params if one in KINDS), None)


def name_of(item: pytest.Item, kind: str) -> str:
    """Return the test's id without the store in it."""
    _, _, name = item.nodeid.partition("::")
    test, _, parameters = name.removesuffix("]").partition("[")
    others = parameters.split("-")
    others.remove(kind)
    return f"{item.path.relative_to(_TESTS).as_posix()}::{test}[{'-'.join(others)}]"
