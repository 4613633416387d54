"""JMESPath expressions: compiled and checked once, evaluated within the bounds of a budget."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from spanloom.engine.errors import ExpressionFailed
from spanloom.engine.limits import MAX_EXPRESSION_CHARACTERS, MAX_EXPRESSION_DEPTH
from spanloom.engine.wording import did_you_mean, quoted_list
from spanloom.engine.workflow.evaluation import EvaluationBudget

__all__ = ["Expression", "evaluate_each"]

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
        if len(text) > MAX_EXPRESSION_CHARACTERS:
            limit = f"{MAX_EXPRESSION_CHARACTERS:,}"
            raise ExpressionFailed(f"an expression of {len(text):,} characters is longer than {limit}")
        self._tree = _parsed(text)
        self._grows = False
        for part, depth in _parts(self._tree):
            if depth > MAX_EXPRESSION_DEPTH:
                raise ExpressionFailed(f"the expression {_shown(text)} is nested more than {MAX_EXPRESSION_DEPTH} deep")
            self._grows = self._grows or part["type"] in _GROWING
            if part["type"] == "function_expression":
                _check_call(text, part)

    def evaluate(self, data: Any, budget: EvaluationBudget | None = None, *, written: bool = True) -> Any:
        """Return its value for JSON-like data. Raises ExpressionFailed, which does not show the data.

        With a budget its bounds, and the error of its `check`, apply to all evaluations that share it. The size of a
        value that is going to be `written` as JSON is bounded.
        """
        jmespath = _jmespath()
        budget = EvaluationBudget() if budget is None else budget
        budget.begin()
        interpreter = jmespath.interpreter(budget)
        try:
            value = interpreter.visit(self._tree, data)
            if written and self._grows:
                interpreter.check_size(value)
        except ExpressionFailed as error:
            raise ExpressionFailed(f"the expression {_shown(self.text)} {error}") from None
        except jmespath.type_error as error:
            wants = f"{error.function_name}() takes {' or '.join(error.expected_types)}, not {error.actual_type}"
            raise ExpressionFailed(f"the expression {_shown(self.text)} can't be evaluated: {wants}") from None
        except (jmespath.error, ArithmeticError, TypeError, ValueError, RecursionError) as error:
            why = type(error).__name__
            raise ExpressionFailed(f"the expression {_shown(self.text)} can't be evaluated ({why})") from None
        return value

    def holds(self, data: Any, budget: EvaluationBudget | None = None) -> bool:
        """Return whether its value is true in JMESPath's sense: false, null, "", [] and {} are not, but 0 is."""
        value = self.evaluate(data, budget, written=False)
        return not (value is False or value is None or value == "" or value == [] or value == {})

    def roots(self) -> Iterator[tuple[str, str | None]]:
        """Yield the top-level names that it reads, each with the name that it reads below, if any."""
        yield from _roots(self._tree)

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"


def evaluate_each(
    expressions: Mapping[str, Expression], data: Any, budget: EvaluationBudget | None = None
) -> dict[str, Any]:
    """Return an object of the values of expressions, within the bound of one value. Raises ExpressionFailed."""
    budget = EvaluationBudget() if budget is None else budget
    found = {name: expression.evaluate(data, budget, written=False) for name, expression in expressions.items()}
    try:
        _jmespath().interpreter(budget).check_size(found)
    except ExpressionFailed as error:
        raise ExpressionFailed(f"the expressions of {quoted_list(expressions)} together: {error}") from None
    return found


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


class _Jmespath:
    """The parts of the jmespath package that are used, and the interpreter over them."""

    def __init__(self) -> None:
        from jmespath import exceptions, functions, parser

        from spanloom.engine.workflow.interpreter import Interpreter

        self.error = exceptions.JMESPathError
        self.type_error = exceptions.JMESPathTypeError
        self.functions: dict[str, Any] = functions.Functions.FUNCTION_TABLE
        self.interpreter = Interpreter
        self._parser = parser.Parser

    def parse(self, text: str) -> Any:
        return self._parser().parse(text).parsed


@functools.cache
def _jmespath() -> _Jmespath:
    """Import at first use: most programs that start workflows never evaluate anything."""
    return _Jmespath()
