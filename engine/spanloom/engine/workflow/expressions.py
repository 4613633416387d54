"""JMESPath expressions: compiled and checked once, evaluated within bounds of length, depth, steps and size."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

from spanloom.engine.errors import ExpressionFailed
from spanloom.engine.wording import did_you_mean

__all__ = ["Expression"]

MAX_LENGTH = 4_000  #: characters of one expression
MAX_DEPTH = 60  #: how deep its parts may be nested
MAX_STEPS = 2_000_000  #: parts evaluated, each element of a projection counts
MAX_SECONDS = 5.0  #: of one evaluation, for functions that cost more than a step
MAX_RESULT = 5_000_000  #: elements and characters of a value, also of an intermediate one
_LOOK = 1_024  # steps between two reads of the clock

#: Parts that pass their own data to all children; others pass it to the first child only.
_FLAT = frozenset(
    {"or_expression", "and_expression", "not_expression", "comparator", "multi_select_list", "multi_select_dict",
     "key_val_pair", "function_expression"}
)  # fmt: skip
_GROWING = frozenset({"multi_select_list", "multi_select_dict", "function_expression"})


class Expression:
    """One JMESPath expression (https://jmespath.org), safe to evaluate on untrusted data, from any thread.

    A missing name gives null and is no error. A function argument of a wrong type is an error.
    """

    __slots__ = ("_grows", "_tree", "text")

    def __init__(self, text: str) -> None:
        """Compile. Raises ExpressionFailed with the reason: syntax, bounds, an unknown function, or its arguments."""
        self.text = text
        if len(text) > MAX_LENGTH:
            raise ExpressionFailed(f"an expression of {len(text):,} characters is longer than {MAX_LENGTH:,}")
        self._tree = _parsed(text)
        self._grows = False
        for part, depth in _parts(self._tree):
            if depth > MAX_DEPTH:
                raise ExpressionFailed(f"the expression {_shown(text)} is nested more than {MAX_DEPTH} deep")
            self._grows = self._grows or part["type"] in _GROWING
            if part["type"] == "function_expression":
                _check_call(text, part)

    def evaluate(self, data: Any) -> Any:
        """Return its value for JSON-like data. Raises ExpressionFailed, which does not show the data."""
        jmespath = _jmespath()
        try:
            value = jmespath.interpreter().visit(self._tree, data)
        except ExpressionFailed as error:
            raise ExpressionFailed(f"the expression {_shown(self.text)} {error}") from None
        except jmespath.type_error as error:
            wants = f"{error.function_name}() takes {' or '.join(error.expected_types)}, not {error.actual_type}"
            raise ExpressionFailed(f"the expression {_shown(self.text)} can't be evaluated: {wants}") from None
        except (jmespath.error, ArithmeticError, TypeError, ValueError, RecursionError) as error:
            why = type(error).__name__
            raise ExpressionFailed(f"the expression {_shown(self.text)} can't be evaluated ({why})") from None
        if self._grows and _weight(value) > MAX_RESULT:  # small parts may stand in it very often
            raise ExpressionFailed(f"the expression {_shown(self.text)} makes more than {MAX_RESULT:,} values")
        return value

    def holds(self, data: Any) -> bool:
        """Return whether its value is true in JMESPath's sense: false, null, "", [] and {} are not, but 0 is."""
        value = self.evaluate(data)
        return not (value is False or value is None or value == "" or value == [] or value == {})

    def roots(self) -> Iterator[tuple[str, str | None]]:
        """Yield the top-level names that it reads, each with the name that it reads below, if any."""
        yield from _roots(self._tree)

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"


def _roots(part: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    children = part["children"]
    if part["type"] == "field":
        yield part["value"], None
    elif part["type"] == "subexpression":
        path = [name for child in children if (name := _first_field(child)) is not None]
        if children[0]["type"] == "field" and path:
            yield path[0], path[1] if len(path) > 1 and _first_field(children[1]) is not None else None
        else:
            yield from _roots(children[0])
    elif part["type"] in _FLAT:
        for child in children:
            yield from _roots(child)
    elif part["type"] not in ("expref", "slice") and children:
        yield from _roots(children[0])


def _first_field(part: Any) -> str | None:
    """Return the name that a step of a path begins with: `a` of a, a[0], a[?x], a[]."""
    while isinstance(part, dict):
        if part["type"] == "field":
            return str(part["value"])
        if part["type"] not in ("index_expression", "projection", "filter_projection", "flatten", "value_projection"):
            return None
        part = part["children"][0]
    return None


def _parts(tree: dict[str, Any]) -> Iterator[tuple[dict[str, Any], int]]:
    pending = [(tree, 1)]
    while pending:
        part, depth = pending.pop()
        yield part, depth
        pending.extend((child, depth + 1) for child in part["children"] if isinstance(child, dict))


def _parsed(text: str) -> dict[str, Any]:
    jmespath = _jmespath()
    try:
        tree: dict[str, Any] = jmespath.parse(text)
    except RecursionError:
        raise ExpressionFailed(f"the expression {_shown(text)} is nested too deep") from None
    except jmespath.error as error:
        hint = '; write a name with odd characters in quotes: nodes."my-node"' if "-" in text else ""
        what = str(error).partition("\n")[0].partition(": Parse error")[0].partition(" for expression")[0].rstrip(": ")
        raise ExpressionFailed(f"the expression {_shown(text)} is not JMESPath: {what}{hint}") from None
    return tree


def _check_call(text: str, call: dict[str, Any]) -> None:
    table = _jmespath().functions
    name, given = call["value"], len(call["children"])
    if name not in table:
        raise ExpressionFailed(f"the expression {_shown(text)} calls {name}(), no function{did_you_mean(name, table)}")
    signature = table[name]["signature"]
    variadic = bool(signature) and bool(signature[-1].get("variadic"))
    if given < len(signature) or (given > len(signature) and not variadic):
        takes = f"{len(signature)}{' or more' if variadic else ''}"
        raise ExpressionFailed(f"the expression {_shown(text)} gives {name}() {given} arguments, it takes {takes}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:119] + "…")


def _weight(value: Any) -> int:
    """Count the values in `value` as often as JSON would write them; shared ones are visited once."""
    weights: dict[int, int] = {}

    def children(value: Any) -> list[Any]:
        return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []

    pending = [value]
    while pending:
        current = pending[-1]
        inside = children(current)
        missing = [child for child in inside if isinstance(child, dict | list) and id(child) not in weights]
        if missing and id(current) not in weights:
            weights[id(current)] = 0  # being weighed
            pending.extend(missing)
            continue
        pending.pop()
        weights[id(current)] = 1 + sum(weights[id(child)] if isinstance(child, dict | list) else 1 for child in inside)
    return weights[id(value)]


class _Jmespath:
    """The parts of the jmespath package that are used, with an interpreter that enforces the bounds."""

    def __init__(self) -> None:
        from jmespath import exceptions, functions, parser, visitor

        self.error = exceptions.JMESPathError
        self.type_error = exceptions.JMESPathTypeError
        self.functions: dict[str, Any] = functions.Functions.FUNCTION_TABLE
        self._parser = parser.Parser

        class Bounded(visitor.TreeInterpreter):
            def __init__(self) -> None:
                super().__init__()
                self.steps = 0
                self.until = time.monotonic() + MAX_SECONDS

            def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
                self.steps += 1
                if self.steps > MAX_STEPS:
                    raise ExpressionFailed(f"takes more than {MAX_STEPS:,} steps")
                if self.steps % _LOOK == 0 and time.monotonic() > self.until:
                    raise ExpressionFailed(f"takes longer than {MAX_SECONDS:g} s")
                value = super().visit(node, *args, **kwargs)
                if type(value) in (str, list, dict) and len(value) > MAX_RESULT:
                    raise ExpressionFailed(f"makes more than {MAX_RESULT:,} values")
                return value

        self.interpreter = Bounded

    def parse(self, text: str) -> Any:
        return self._parser().parse(text).parsed


@functools.cache
def _jmespath() -> _Jmespath:
    """Import at first use: most programs that start workflows never evaluate anything."""
    return _Jmespath()
