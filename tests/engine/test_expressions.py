"""Expressions give what JMESPath says, refuse what is wrong before they run, and never run away."""

from __future__ import annotations

import time
from typing import Any

import pytest

from spanloom.engine.errors import ExpressionFailed
from spanloom.engine.workflow.expressions import MAX_LENGTH, MAX_RESULT, MAX_STEPS, Expression

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
        ("a" * (MAX_LENGTH + 1), "longer than"),
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


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (" | ".join(["[@, @]"] * 55), 1),  # 2^55 values, each shared
        (" | ".join(["[@, @][]"] * 55), [1]),
        (" | ".join(["join('', [@, @])"] * 55), "x" * 100),
        (" | ".join(["{a: @, b: @}"] * 55), 1),
        ("[].[@][] | [].[@][] | [].[@][]", list(range(1_000_000))),
        ("map(&[@, @, @], @) | map(&[@, @, @], @)", list(range(1_000_000))),
    ],
    ids=["lists", "flattened", "strings", "objects", "steps", "map"],
)
def test_an_expression_that_grows_or_runs_without_end_is_stopped(text: str, data: Any) -> None:
    began = time.process_time()
    with pytest.raises(ExpressionFailed) as caught:
        Expression(text).evaluate(data)
    bounds = (f"{MAX_STEPS:,}", f"{MAX_RESULT:,}", "longer than")  # on a busy machine time is up first
    assert any(bound in str(caught.value) for bound in bounds)
    assert time.process_time() - began < 30


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
