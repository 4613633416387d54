"""What `make test` runs of that which repeats itself: each behaviour once, and the rest in `make torture`.

The stores' semantics are the business of the conformance suite, which every store passes in every run. A behaviour end
to end is run over one store, chosen by a hash of its name that is the same in every process and every run, so that each
store sees a third of them; so do other tests that are marked `one_store`. Tests of what a store's processes do to each
other, marked `every_store`, meet all stores that processes can share; what makes sense over some only is marked
`stores`. Of the cases of a test that is marked `one_in`, a share is chosen by the same hash.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

__all__ = ["KINDS", "chosen", "kind_of", "kinds_for", "name_of", "select", "share_of"]

KINDS = ("memory", "sqlite", "postgres")
_TESTS = Path(__file__).parent.parent
#: Where the memory store is left to torture: it is the SQLite store over `:memory:`, which these try in full anyway.
_LIKE_SQLITE = ("model/test_model.py", "differential/test_differential.py")


def chosen(name: str, kinds: Sequence[str]) -> str:
    """Return the one of `kinds` over which the test of this name is run."""
    return kinds[_hash(name) % len(kinds)]


def share_of(cases: Sequence[str], number: int) -> list[str]:
    """Return one in `number` of the cases, rounded up, so that there is one at least."""
    return sorted(cases, key=_hash)[: math.ceil(len(cases) / number)]


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the stores that a test is not for, and mark as torture what only `make torture` runs.

    All that a test is for is run if tests are named, by -k or an id, and with --every-store.
    """
    found = [(item, kind) for item in items if (kind := kind_of(item)) is not None]
    others = {item for item, kind in found if kind not in kinds_for(item)}
    if others:
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=list(others))
    named = config.option.keyword or any("::" in one for one in config.args)
    if config.option.every_store or (named and "torture" not in config.option.markexpr):
        return
    _choose_stores([(item, kind) for item, kind in found if item not in others])
    _choose_shares(items)


def _choose_stores(found: Sequence[tuple[pytest.Item, str]]) -> None:
    behaviours: dict[str, dict[str, pytest.Item]] = {}
    for item, kind in found:
        path = item.path.relative_to(_TESTS).as_posix()
        every = item.get_closest_marker("every_store")
        if kind == "memory" and (every or path in _LIKE_SQLITE):
            item.add_marker(pytest.mark.torture)
        elif every:
            continue
        elif path.startswith("e2e/") or item.get_closest_marker("one_store"):
            behaviours.setdefault(name_of(item, kind), {})[kind] = item
    for name, over in behaviours.items():
        kept = chosen(name, [kind for kind in KINDS if kind in over])
        for kind, item in over.items():
            if kind != kept:
                item.add_marker(pytest.mark.torture)


def _choose_shares(items: Sequence[pytest.Item]) -> None:
    """Choose among the cases of each test, or of each file, that would be run at all."""
    groups: dict[tuple[str, int], dict[str, pytest.Item]] = {}
    for item in items:
        mark = item.get_closest_marker("one_in")
        if mark is None or item.get_closest_marker("torture"):
            continue
        file, _, test = item.nodeid.partition("::")
        within = file if mark.kwargs.get("of") == "file" else f"{file}::{test.partition('[')[0]}"
        groups.setdefault((within, mark.args[0]), {})[item.nodeid] = item
    for (_, number), cases in groups.items():
        kept = set(share_of(list(cases), number))
        for name, item in cases.items():
            if name not in kept:
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


def _hash(name: str) -> int:
    return zlib.crc32(name.encode())
