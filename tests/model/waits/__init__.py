"""The kinds of wait that the machine plays, one in each module; all that are here are played."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from model.wait_kind import Wait
from spanloom.engine.store.states import WaitKind

for _found in iter_modules(__path__):
    import_module(f"{__name__}.{_found.name}")

_KNOWN = {one.kind: one() for one in Wait.__subclasses__()}
#: By kind, in the order of the kinds.
WAITS: dict[WaitKind, Wait] = {kind: _KNOWN[kind] for kind in WaitKind if kind in _KNOWN}
#: The bases of the machine that have their rules.
RULES = tuple(one.rules for one in WAITS.values() if one.rules is not None)
