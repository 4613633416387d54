"""Functions that are defined again: by a notebook cell that runs again, or by a module that is reloaded."""

from __future__ import annotations

import functools
import inspect
import linecache
import os
from types import CodeType, FrameType
from typing import Any

__all__ = ["is_redefinition", "is_typed_in"]


def is_redefinition(old: Any, new: Any) -> bool:
    """Return whether `new` is `old`, defined once more at the same place, so that it is to take its place.

    The place is the module and the qualified name, and for code in a file its line, unless the file has changed there
    since. A partial, a bound method or an object is the same if its function or class is, with equal contents.
    """
    if old is new:
        return True
    if isinstance(old, functools.partial) and isinstance(new, functools.partial):
        contents = (old.args, old.keywords), (new.args, new.keywords)
        return is_redefinition(old.func, new.func) and _equal(*contents)
    if inspect.ismethod(old) and inspect.ismethod(new):
        return is_redefinition(old.__func__, new.__func__) and is_redefinition(old.__self__, new.__self__)
    code, again = _code(old), _code(new)
    if code is not None and again is not None:
        return _name(old) == _name(new) and _is_same_place(code, again)
    if isinstance(old, type) and isinstance(new, type):
        return _name(old) == _name(new)
    kinds = type(old), type(new)
    if code is not None or again is not None or "__call__" not in dir(kinds[1]):
        return _equal(old, new)
    return is_redefinition(*kinds) and _equal(getattr(old, "__dict__", None), getattr(new, "__dict__", None))


def is_typed_in() -> bool:
    """Return whether the code that called Spanloom was typed into a notebook or a prompt: it is in no file."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("spanloom."):
        frame = frame.f_back
    return frame is not None and not os.path.exists(frame.f_code.co_filename)


def _code(function: Any) -> CodeType | None:
    """Return the code of a function behind its decorators, if it is a Python function."""
    if isinstance(function, type) or not callable(function):
        return None
    try:
        code = getattr(inspect.unwrap(function), "__code__", None)
    except ValueError:  # it wraps itself
        return None
    return code if isinstance(code, CodeType) else None


def _name(defined: Any) -> tuple[object, object]:
    return getattr(defined, "__module__", None), getattr(defined, "__qualname__", None)


def _is_same_place(old: CodeType, new: CodeType) -> bool:
    if not os.path.exists(new.co_filename):
        return True
    if old.co_filename != new.co_filename:
        return False
    if old.co_firstlineno == new.co_firstlineno:
        return True
    linecache.checkcache(old.co_filename)
    line = linecache.getline(old.co_filename, old.co_firstlineno).strip()
    return not line.startswith(("@", "def ", "async def ")) and "lambda" not in line


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # of somebody's own __eq__
        return False
