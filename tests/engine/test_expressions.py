"""Expressions give what JMESPath says, refuse what is wrong before they run, and never run away."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from spanloom.engine.errors import ExpressionFailed
from spanloom.engine.limits import MAX_EXPRESSION_CHARACTERS
from spanloom.engine.workflow.evaluation import EvaluationBudget
from spanloom.engine.workflow.expressions import Expression

ORDER = {"id": 7, "lines": [{"sku": "a", "n": 2}, {"sku": "b", "n": 0}], "note": "", "zero": 0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("id", 7),
        ("lines[?n > `0`].sku", ["a"]),
        ("lines[].n | sum(@)", 2),
        ("{order: id, first: lines[0].sku}", {"order": 7, "first": "a"}),
        ("missing.deeper", None),
        ("@", ORDER),
    ],
)
def test_an_expression_gives_what_jmespath_says(text: str, value: Any) -> None:
    assert Expression(text).evaluate(ORDER) == value


@pytest.mark.parametrize(
    ("text", "holds"),
    [("id", True), ("zero", True), ("note", False), ("missing", False), ("lines", True), ("lines[?n > `9`]", False),
     ("id == `7` && zero == `0`", True), ("`{}`", False), ("`false`", False)],
)  # fmt: skip
def test_a_condition_holds_in_the_sense_of_jmespath(text: str, holds: bool) -> None:
    assert Expression(text).holds(ORDER) is holds


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty"),
        ("a.", "not JMESPath"),
        ("nodes.my-node", 'nodes."my-node"'),
        ("lenght(a)", "did you mean 'length'"),
        ("length(a, b)", "gives length() 2 arguments, it takes 1"),
        ("merge()", "takes 1 or more"),
        ("a" * (MAX_EXPRESSION_CHARACTERS + 1), "longer than"),
        ("[" * 70 + "a" + "]" * 70, "nested more than"),
        ("(" * 1900 + "a" + ")" * 1900, "nested too deep"),
        (" | ".join(["a"] * 70), "nested more than"),
    ],
)
def test_a_wrong_expression_is_refused_before_it_runs(text: str, told: str) -> None:
    with pytest.raises(ExpressionFailed) as caught:
        Expression(text)
    assert told in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("length(@)", 5),
        ("sort(@)", [1, "a"]),
        ("to_number(@) | abs(@)", "secret"),
        ("join(',', @)", [1]),
        ("@ | keys(@)", ["secret"]),
    ],
)
def test_data_that_a_function_can_not_take_is_an_error_that_does_not_show_it(text: str, data: Any) -> None:
    with pytest.raises(ExpressionFailed) as caught:
        Expression(text).evaluate(data)
    assert "can't be evaluated" in str(caught.value)
    assert "secret" not in str(caught.value)


def _piped(part: str, times: int) -> str:
    return " | ".join([part] * times)


_TWINS = f"{{a: {_piped('[@, @]', 25)}, b: {_piped('[@, @]', 25)}}}"  # equal, each of 2^25 values, in 50 lists
_LONG = "a" * 1_000_000


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (_piped("[@, @]", 30), 1),  # 2^30 values, each shared
        (_piped("{a: @, b: @}", 30), 1),
        (_piped("[@, @][]", 40), [1]),
        (_piped("[@, @]", 25) + _piped("[]", 25).replace(" | ", ""), 1),
        (f"{_TWINS} | a == b", 1),
        (f"{_TWINS} | a != b", 1),
        (f"[{_TWINS}] | [?a == b]", 1),
        (f"{_TWINS} | map(&(a == b), [@, @])", 1),
        (f"{_TWINS} | contains([a, a], b)", 1),
        (_piped("[@, @]", 25) + " | to_string(@)", 1),
        (_piped("{a: @, b: @}", 25) + " | to_string(@)", 1),
        (_piped("[@, @]", 8) + " | to_string(@)", _LONG),
        (_piped("join('', [@, @])", 40), "x"),
        (_piped("join(@, [@, @, @])", 20), "xx"),
        (_piped("[@, @][]", 14) + " | sort(@)", [_LONG + "a", _LONG + "b"]),
        (_piped("[@, @][]", 14) + " | sort_by(@, &@)", [_LONG + "a", _LONG + "b"]),
        (_piped("[@, @][]", 14) + " | min_by(@, &@)", [_LONG + "a", _LONG + "b"]),
        (_piped("[@, @][]", 14) + " | max(@)", [_LONG + "a", _LONG + "b"]),
        (_piped("[@, @][]", 14) + " | join('', @)", [_LONG]),
        (_piped("[@, @][]", 14) + " | contains(@, @[0])", [_LONG]),
        ("[*].contains(@, 'b')", [_LONG] * 10_000),
        ("[*].reverse(@)", [_LONG] * 10_000),
        ("[*].to_number(@)", ["1" * 10_000] * 10_000),
        ("[*].merge(@, @)", [dict.fromkeys(map(str, range(1_000)), 1)] * 10_000),
        ("[*].keys(@)", [dict.fromkeys(map(str, range(1_000)), 1)] * 10_000),
        ("[*].values(@)", [dict.fromkeys(map(str, range(1_000)), 1)] * 10_000),
        ("[*][::-1]", [[1] * 10_000] * 10_000),
        ("[*].sum(@)", [[1] * 10_000] * 10_000),
        ("[*].sort(@)", [[2, 1] * 10_000] * 10_000),
        ("[*].sort_by(@, &@)", [[2, 1] * 10_000] * 10_000),
        ("[].[@, @, @][] | [].[@, @, @][] | [].[@, @, @][] | [].[@, @, @][]", list(range(20_000))),
        ("[*][*][*]", [[[1] * 1_000] * 1_000] * 1_000),
        (f"merge({', '.join(['@'] * 900)})", dict.fromkeys(map(str, range(10_000)), 1)),
        (", ".join(["[@"] * 50) + "]" * 50 + " | to_string([@, @, @, @])", ["x" * 100_000] * 100),
    ],
)
def test_an_expression_that_grows_or_runs_without_end_is_stopped_before_it_does(
    text: str, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spanloom.engine.workflow.evaluation.MAX_EXPRESSION_STEPS", 100_000)  # they take long, traced
    expression = Expression(text)
    tracemalloc.start()
    try:
        with pytest.raises(ExpressionFailed) as caught:
            expression.evaluate(data)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    bounds = ("100,000 steps", "64 MiB", "longer than")  # on a busy machine time is up first
    assert any(bound in str(caught.value) for bound in bounds)
    assert most < 100_000_000


@pytest.mark.parametrize(
    ("text", "data", "value"),
    [
        ("sort(@) | [0]", list(range(100_000, 0, -1)), 1),
        ("sort_by(@, &n) | [0].n", [{"n": n} for n in range(50_000, 0, -1)], 1),
        ("contains(@, 'no')", ["yes"] * 500_000, False),
        ("length(to_string(@))", [["x" * 10_000] * 100] * 10, 10_003_021),
        ("[@, @] | [0] == [1]", list(range(1_000_000)), True),
        ("length([*].{n: @})", list(range(200_000)), 200_000),
    ],
)
def test_an_expression_over_much_data_is_evaluated(text: str, data: Any, value: Any) -> None:
    assert Expression(text).evaluate(data) == value


@pytest.mark.parametrize("text", ["[*].[@, @]", "sort_by(@, &to_string(@))", "map(&[@], @)", "[?@ > `1`]"])
def test_an_evaluation_can_be_ended_between_its_steps(text: str) -> None:
    calls: list[int] = []

    class Cancelled(Exception):
        """Raised when the check is due for the third time."""

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        Expression(text).evaluate(list(range(100_000)), EvaluationBudget(check))


def test_evaluations_for_one_node_have_bounds_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spanloom.engine.workflow.evaluation.MAX_EXPRESSIONS_STEPS", 10_000)
    budget, expression, evaluated = EvaluationBudget(), Expression("[*].[@]"), 0

    with pytest.raises(ExpressionFailed, match="with those before it, more than 10,000 steps"):
        while evaluated < 100:
            expression.evaluate(list(range(500)), budget)
            evaluated += 1

    assert 5 < evaluated < 10


def test_the_names_it_looks_up_are_known_beforehand() -> None:
    assert list(Expression("nodes.a[?x > `1`].y | [0]").roots()) == [("nodes", "a")]
    assert list(Expression('{a: input.x, b: nodes."my-node"[0], c: length(nodes.z)}').roots()) == [
        ("input", "x"), ("nodes", "my-node"), ("nodes", "z"),
    ]  # fmt: skip
    assert list(Expression("nodes.*.x || other").roots()) == [("nodes", None), ("other", None)]
    assert list(Expression("map(&inner, nodes.a) | outer").roots()) == [("nodes", "a")]
    assert list(Expression("@.anything").roots()) == []


def test_one_expression_serves_many_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    expression = Expression("lines[].n | sum(@)")
    with ThreadPoolExecutor(8) as threads:
        found = threads.map(expression.evaluate, ({"lines": [{"n": n}]} for n in range(500)))
        assert list(found) == list(range(500))
