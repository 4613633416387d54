"""The interpreter of JMESPath: the library's, with the cost of each operation taken from a budget before it is done.

An operation in C is done only on values of bounded size, so that threads, signals and time limits get their turn
between two of them. Values may share parts: thirty `[@, @]` make thirty lists, and a billion values for whatever goes
through them. So the size of a value counts each part as often as it stands in it, and is found without going through
it: once for each part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jmespath import exceptions, functions, visitor

from spanloom.engine.errors import ExpressionFailed
from spanloom.engine.limits import MAX_EXPRESSION_BYTES
from spanloom.engine.wording import size_text
from spanloom.engine.workflow.evaluation import EvaluationBudget

__all__ = ["Interpreter"]

_VALUE = 16  #: bytes that a value counts beside its characters: less than it takes in memory, more than as JSON
_SLOT = 8  #: bytes of a list for each element
_ENTRY = 100  #: bytes of a dict for each key
_PLAIN = 1 << 64
_ORDERED = frozenset({int, float, str})

_FUNCTIONS: Any = functions.Functions()
_EQUAL: Any = visitor.TreeInterpreter.COMPARATOR_FUNC["eq"]  # no number equals a boolean
_Expref: Any = vars(visitor)["_Expression"]  # which its functions know by this class


class Interpreter(visitor.TreeInterpreter):
    """The interpreter of one evaluation."""

    _dict_cls = dict

    def __init__(self, budget: EvaluationBudget) -> None:  # the library's makes its options and functions anew
        self._budget = budget
        self._sizes: dict[int, tuple[Any, int]] = {}  # by id; the value is kept, or its id would be used again

    def visit(self, node: Any, value: Any) -> Any:
        """Evaluate a part of the expression on a value."""
        budget = self._budget
        budget.left -= 1
        if budget.left < budget.mark:
            budget.look()
        return _VISITS[node["type"]](self, node, value)

    def size(self, value: Any) -> int:
        """Return about how many bytes a value takes as JSON, each part counted as often as it stands in it."""
        kind = type(value)
        if kind is not list and kind is not dict:
            return _size_of_scalar(value)
        sizes = self._sizes
        pending = [value]
        while pending:
            current = pending[-1]
            if id(current) in sizes:
                pending.pop()
                continue
            self._budget.spend(len(current) // 16)
            total = _VALUE
            children = current
            if type(current) is dict:
                total += sum(map(len, current)) + _VALUE * len(current)
                children = current.values()
            known = True
            for child in children:
                kind = type(child)
                if kind is str:
                    total += _VALUE + len(child)
                elif kind is list or kind is dict:
                    found = sizes.get(id(child))
                    if found is None:
                        known = False
                        pending.append(child)
                    else:
                        total += found[1]
                else:
                    total += _VALUE if kind is not int else _size_of_scalar(child)
            if known:
                pending.pop()
                sizes[id(current)] = current, total
        return sizes[id(value)][1]

    def check_size(self, value: Any) -> None:
        """Raise ExpressionFailed if a value would be too large as JSON."""
        if self.size(value) > MAX_EXPRESSION_BYTES:
            raise ExpressionFailed(f"makes more than {size_text(MAX_EXPRESSION_BYTES)}")

    # ---- operations that the library does at once ----

    def visit_comparator(self, node: Any, value: Any) -> Any:
        """Compare: containers are equal if all of their parts are."""
        first, second = node["children"]
        left, right = self.visit(first, value), self.visit(second, value)
        name = node["value"]
        if name in ("eq", "ne"):
            if isinstance(left, list | dict) and isinstance(right, list | dict) and left is not right:
                self._budget.pass_through(min(self.size(left), self.size(right)))
            return bool(_EQUAL(left, right)) is (name == "eq")
        if type(left) not in _ORDERED or type(right) not in _ORDERED:
            return None
        return self.COMPARATOR_FUNC[name](left, right)

    def visit_flatten(self, node: Any, value: Any) -> Any:
        """Join the lists in a list."""
        base = self.visit(node["children"][0], value)
        if not isinstance(base, list):
            return None
        self._budget.spend(len(base) // 8)
        self._budget.create(_SLOT * sum(len(element) if isinstance(element, list) else 1 for element in base))
        merged: list[Any] = []
        for element in base:
            if isinstance(element, list):
                merged.extend(element)
            else:
                merged.append(element)
        return merged

    def visit_slice(self, node: Any, value: Any) -> Any:
        """Take a part of a list."""
        if not isinstance(value, list):
            return None
        part = slice(*node["children"])
        self._budget.create(_SLOT * len(range(*part.indices(len(value)))))
        return value[part]

    def visit_expref(self, node: Any, value: Any) -> Any:
        """Keep an expression as the argument of a function."""
        return _Expref(node["children"][0], self)

    def visit_function_expression(self, node: Any, value: Any) -> Any:
        """Call a function, after taking its cost."""
        arguments = [self.visit(child, value) for child in node["children"]]
        name = node["value"]
        cost = _COSTS.get(name)
        if cost is not None:
            cost(self, *arguments)
        if name in _BY:
            return self._by(name, *arguments)
        return _FUNCTIONS.call_function(name, arguments)

    def _by(self, name: str, array: Any, expression: Any) -> Any:
        """Sort a list by a key, or return the element with the least or the greatest key."""
        _FUNCTIONS._validate_arguments([array, expression], _FUNCTIONS.FUNCTION_TABLE[name]["signature"], name)
        keys: list[Any] = []
        allowed = ["number", "string"]
        for element in array:
            key = self.visit(expression.expression, element)
            kind = _FUNCTIONS._convert_to_jmespath_type(type(key).__name__)
            if kind not in allowed:
                raise exceptions.JMESPathTypeError(name, key, kind, allowed)
            if name == "sort_by":
                allowed = [kind]
            keys.append(key)
        places = range(len(keys))
        if name == "sort_by":
            self.spend_on_sort(keys)
            return [array[place] for place in sorted(places, key=keys.__getitem__)]
        self.spend_on_each(keys)
        choose = min if name == "min_by" else max
        return array[choose(places, key=keys.__getitem__)] if array else None

    # ---- costs ----

    def spend_on_each(self, values: Any) -> None:
        """Take the steps of going once through a list of scalars, or through a text."""
        if isinstance(values, list):
            self._budget.spend(len(values) // 4)
            self._budget.pass_through(sum(map(_size_of_scalar, values)))
        elif isinstance(values, str):
            self._budget.pass_through(len(values))

    def spend_on_sort(self, values: Any) -> None:
        """Take the steps of sorting a list of scalars, and its memory."""
        if isinstance(values, list):
            self._budget.create(2 * _SLOT * len(values))
            rounds = len(values).bit_length()
            self._budget.spend(len(values) * rounds // 8)
            self._budget.spend(sum(map(_size_of_scalar, values)) * rounds // 1024)  # texts with the same beginnings

    def spend_on_join(self, separator: Any, texts: Any) -> None:
        """Take the memory of a text made of others."""
        if isinstance(separator, str) and isinstance(texts, list):
            self._budget.spend(len(texts) // 4)
            self._budget.create(len(separator) * len(texts) + sum(map(_size_of_scalar, texts)))

    def spend_on_search(self, subject: Any, sought: Any) -> None:
        """Take the steps of a search: it compares each element, and each of their parts, with the sought value."""
        if isinstance(subject, list):
            self._budget.pass_through(_VALUE * len(subject))
            if (each := self.size(sought)) > _VALUE:
                self._budget.pass_through(min(each * len(subject), self.size(subject)))
        elif isinstance(subject, str):
            self._budget.pass_through(len(subject))

    def spend_on_copy(self, value: Any) -> None:
        """Take the memory of a copy of a list or a text, or of a list of an object's keys or values."""
        if isinstance(value, str):
            self._budget.create(len(value))
        elif isinstance(value, list | dict):
            self._budget.create(_SLOT * len(value))

    def spend_on_merge(self, *values: Any) -> None:
        """Take the memory of an object with the keys of all."""
        self._budget.create(_ENTRY * sum(len(value) for value in values if isinstance(value, dict)))

    def spend_on_text(self, value: Any) -> None:
        """Take the steps of writing a value as JSON, and its memory."""
        if not isinstance(value, str):
            size = self.size(value)
            self._budget.pass_through(size)
            self._budget.create(size)


def _size_of_scalar(value: Any) -> int:
    kind = type(value)
    if kind is str:
        return _VALUE + len(value)
    if kind is int and not -_PLAIN < value < _PLAIN:
        return _VALUE + int(value.bit_length()) // 3
    return _VALUE


_BY = frozenset({"sort_by", "min_by", "max_by"})

#: By function, the operation that takes its cost. The others take no longer for a large value.
_COSTS: dict[str, Callable[..., None]] = {
    "avg": Interpreter.spend_on_each,
    "contains": Interpreter.spend_on_search,
    "join": Interpreter.spend_on_join,
    "keys": Interpreter.spend_on_copy,
    "max": Interpreter.spend_on_each,
    "merge": Interpreter.spend_on_merge,
    "min": Interpreter.spend_on_each,
    "reverse": Interpreter.spend_on_copy,
    "sort": Interpreter.spend_on_sort,
    "sum": Interpreter.spend_on_each,
    "to_number": Interpreter.spend_on_each,
    "to_string": Interpreter.spend_on_text,
    "values": Interpreter.spend_on_copy,
}

_VISITS: dict[str, Callable[[Interpreter, Any, Any], Any]] = {
    name.removeprefix("visit_"): getattr(Interpreter, name) for name in dir(Interpreter) if name.startswith("visit_")
}
