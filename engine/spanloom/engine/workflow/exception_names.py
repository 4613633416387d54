"""Exception classes by name, as retry policies have them: found among imported modules, compared by identity."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from spanloom.engine import errors
from spanloom.engine.wording import did_you_mean

__all__ = ["NameChecks", "is_named", "name_of", "unknown_names"]

_NAME = re.compile(r"[^\W\d]\w*(\.([^\W\d]\w*|<locals>))*").fullmatch
_MISSING = object()
_LAZY = object()  #: in a module that makes its names when they are first used
#: Modules of the standard library that do more than define names when they are imported.
_EFFECTFUL = frozenset({"__main__", "antigravity", "idlelib", "test", "this", "turtledemo"})
_LONG_NAME = 10  # of so many characters, a name that is one letter off a built-in one is no name of somebody's own


def name_of(kind: type) -> str:
    """Return the name by which a policy keeps a class: with its module where that is the same in every process."""
    if kind.__module__ in ("builtins", "__main__", errors.__name__):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def is_named(kind: type, names: Collection[str]) -> bool:
    """Return whether one of these names names a class or a base of it.

    The names of a class are `Class` and `module.Class`, of its own module and of each imported one that has it under
    that name (`redis.ConnectionError` is `redis.exceptions.ConnectionError`). Nothing is imported.
    """
    if not names:
        return False
    own = {name for base in kind.__mro__[:-1] for name in _names(base)}
    return not own.isdisjoint(names) or any(_is_alias(name, kind) for name in names)


def unknown_names(names: Collection[str]) -> list[str]:
    """Return the names with a module that stand for nothing among the imported modules."""
    return [name for name in names if "." in name and "<" not in name and _find(name) is _MISSING]


def _names(kind: type) -> Iterator[str]:
    for name in (kind.__name__, kind.__qualname__):
        yield name
        yield f"{kind.__module__}.{name}"
        if kind.__module__ == "__main__" and (main := _main_module()):
            yield f"{main}.{name}"  # as it is imported elsewhere


def _main_module() -> str | None:
    main = sys.modules.get("__main__")
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    return spec.name if spec is not None else Path(file).stem if file else None


def _is_alias(name: str, kind: type) -> bool:
    found = _find(name)
    if isinstance(found, type):
        return found in kind.__mro__
    package, last = name.partition(".")[0], name.rpartition(".")[2]
    return found is _LAZY and any(
        base.__name__ == last and base.__module__.partition(".")[0] == package for base in kind.__mro__
    )


def _find(name: str) -> Any:
    """Return the object of a name in the imported modules, _LAZY, or _MISSING. Runs no code of any module."""
    parts = name.split(".")
    if len(parts) == 1:
        return vars(builtins).get(name, vars(errors).get(name, _MISSING))
    for length in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:length]))
        if module is not None:
            return _descend(module, parts[length:])
    return _MISSING


def _descend(found: Any, parts: list[str]) -> Any:
    for part in parts:
        if isinstance(found, type):
            found = inspect.getattr_static(found, part, _MISSING)
        else:
            names = getattr(found, "__dict__", {})
            found = names.get(part, _LAZY if "__getattr__" in names else _MISSING)
        if found is _MISSING or found is _LAZY:
            break
    return found


class NameChecks:
    """Checks of the names in retry policies, against the modules that are imported in this process.

    A module that is not imported may be missing here and present in a worker: its names are accepted.
    """

    def __init__(self) -> None:
        self._loaded: frozenset[type] | None = None
        self._problems: dict[tuple[str, bool], str | None] = {}

    def problem(self, name: str, *, runs_here: bool) -> str | None:
        """Return why a name can name no exception; None if it does or may.

        `runs_here`: the node's handler is registered in this process, so that its own exceptions are imported.
        """
        key = (name, runs_here)
        if key not in self._problems:
            self._problems[key] = self._problem(name, runs_here=runs_here)
        return self._problems[key]

    def _problem(self, name: str, *, runs_here: bool) -> str | None:
        if not _NAME(name):
            return f"{name[:200]!r} is no name of a class; write Class or module.Class"
        found = _find(name)
        if found is _MISSING and "." in name and name.partition(".")[0] in sys.stdlib_module_names - _EFFECTFUL:
            _import_most(name)
            found = _find(name)
        if isinstance(found, type):
            if issubclass(found, BaseException) or any(found in kind.__mro__ for kind in self._exceptions()):
                return None
            return f"{name!r} is no exception"
        if found is not _MISSING and found is not _LAZY:
            return f"{name!r} is no class"
        if found is _LAZY or self._is_loaded(name):
            return None
        return self._unknown_module(name) if "." in name else self._unknown_class(name, runs_here=runs_here)

    def _exceptions(self) -> frozenset[type]:
        if self._loaded is None:
            found: set[type] = set()
            todo: list[type] = [BaseException]
            while todo:
                kind = todo.pop()
                if kind not in found:
                    found.add(kind)
                    todo.extend(type.__subclasses__(kind))
            self._loaded = frozenset(found)
        return self._loaded

    def _is_loaded(self, name: str) -> bool:
        return any(name in _names(base) for kind in self._exceptions() for base in kind.__mro__[:-1])

    def _unknown_class(self, name: str, *, runs_here: bool) -> str | None:
        known = {kind.__name__ for kind in self._exceptions()}
        if runs_here:
            hint = did_you_mean(name, known)
            return f"no exception {name!r} is defined or imported here{hint}; write module.Class for one that is not"
        ours = {kind.__name__ for kind in self._exceptions() if kind.__module__ in ("builtins", errors.__name__)}
        meant = next((one for one in ours if _is_slip(name, one)), None)
        return None if meant is None else f"there is no exception {name!r} (did you mean {meant!r}?)"

    def _unknown_module(self, name: str) -> str | None:
        parts = name.split(".")
        for length in range(len(parts) - 1, 0, -1):
            within = ".".join(parts[:length])
            module = sys.modules.get(within)
            if module is None:
                continue
            missing = parts[length]
            if length < len(parts) - 1 and _is_submodule(f"{within}.{missing}", module):
                return None  # not imported yet
            names = getattr(module, "__dict__", {})
            classes = [known for known, value in names.items() if isinstance(value, type)]
            return f"module {within!r} has no {missing!r}{did_you_mean(missing, classes)}"
        return None


def _import_most(name: str) -> None:
    """Import the longest part of a name that is a module of the standard library."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        with suppress(Exception):  # it is no module, or none of this platform
            importlib.import_module(".".join(parts[:length]))
            return


def _is_submodule(name: str, package: Any) -> bool:
    if not hasattr(package, "__path__"):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except Exception:  # of a finder of somebody else's: it can't be judged
        return True


def _is_slip(name: str, known: str) -> bool:
    """Return whether a name is a known one in other letter case or, if it is long, with one letter wrong."""
    if name.casefold() == known.casefold():
        return True
    if len(known) < _LONG_NAME or abs(len(name) - len(known)) > 1:
        return False
    start = next((n for n, pair in enumerate(zip(name, known, strict=False)) if pair[0] != pair[1]), None)
    if start is None:
        return True
    left, right = name[start:], known[start:]
    slips = (left[1:], right[:1] + left[1:], right[:1] + left, left[:2][::-1] + left[2:])
    return right in slips  # a letter too many, another one, one too few, two exchanged
