"""YAML is read by the core schema of 1.2, and whatever has no form in JSON is refused with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanloom.engine import ConfigurationError, WorkflowInvalid, load_workflow
from spanloom.engine.workflow.yaml_text import YamlProblem, dump_yaml, parse_yaml

_CORE: list[tuple[str, Any]] = [
    ("22:30", "22:30"),
    ("12:30:45", "12:30:45"),
    ("190:20:30.15", "190:20:30.15"),
    ("010", 10),
    ("0o17", 15),
    ("0o18", "0o18"),
    ("0x1F", 31),
    ("-0x1F", "-0x1F"),
    ("0b101", "0b101"),
    ("1_000", "1_000"),
    ("0.1_0", "0.1_0"),
    ("+1", 1),
    ("-7", -7),
    ("1e3", 1000.0),
    ("1.", 1.0),
    ("-.5", -0.5),
    ("+.5E-1", 0.05),
    ("1e", "1e"),
    (".", "."),
    ("1.2.3", "1.2.3"),
    ("yes", "yes"),
    ("Off", "Off"),
    ("y", "y"),
    ("TRUE", True),
    ("false", False),
    ("tRUE", "tRUE"),
    ("~", None),
    ("Null", None),
    ("", None),
    ("none", "none"),
    ("=", "="),
    ("2026-01-01", "2026-01-01"),
    ("2026-01-01T10:00:00Z", "2026-01-01T10:00:00Z"),
    (r'"\ud83d\ude00"', "😀"),
    (r'"a\ud83d\ude00b\uD834\uDD1E"', "a😀b𝄞"),
    (r'"\U0001F600 \x41 \/"', "😀 A /"),
    (r"'\ud83d'", r"\ud83d"),
    ("!!str 12", "12"),
    ('!!int "0o17"', 15),
    ("!!float 1", 1.0),
    ('!!null ""', None),
    ("!!bool true", True),
    ("!!map {a: 1}", {"a": 1}),
    ("!!seq [1]", [1]),
    ('"<<": 1', {"<<": 1}),
    ("? a\n: b", {"a": "b"}),
    ("%YAML 1.1\n---\nyes", "yes"),
]


@pytest.mark.parametrize(("text", "value"), _CORE)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    assert repr(parse_yaml(text)) == repr(value)
    if "\n" not in text and not text.startswith(("!", '"<')):
        assert repr(parse_yaml(f"- {text}")) == repr([value])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (".inf", "a number that is not finite has no form in JSON"),
        ("-.INF", "a number that is not finite has no form in JSON"),
        (".NaN", "a number that is not finite has no form in JSON"),
        ("!!float .inf", "a number that is not finite has no form in JSON"),
        ("1e999", "a number is too large"),
        ("9" * 5_000, "an integer has too many digits"),
        ("0x" + "F" * 5_000, None),  # of a power of two there are no too many
        (r'"\ud83d"', "half of a surrogate pair is no character"),
        (r'"\ude00\ud83d"', "half of a surrogate pair is no character"),
        (r'{"\ud83d": 1}', "half of a surrogate pair is no character"),
        (r'"\U00110000"', "an escape is no character"),
        (r'"\UFFFFFFFF"', "an escape is no character"),
        ("!!bool x", "'x' is not true or false"),
        ("!!bool yes", "'yes' is not true or false"),
        ("!!int 1:30", "'1:30' is not an integer"),
        ("!!int x", "'x' is not an integer"),
        ("!!float x", "'x' is not a number"),
        ("!!null x", "'x' is not null"),
        ("!!timestamp x", "could not determine a constructor for the tag '!!timestamp'"),
        ("!!timestamp 2026-01-01", "could not determine a constructor for the tag '!!timestamp'"),
        ("!!binary aGk=", "could not determine a constructor for the tag '!!binary'"),
        ("!!set {a, b}", "could not determine a constructor for the tag '!!set'"),
        ("!!omap [a: 1]", "could not determine a constructor for the tag '!!omap'"),
        ("!mine x", "could not determine a constructor for the tag '!mine'"),
        ("!!python/name:os.system x", "could not determine a constructor for the tag '!!python/name:os.system'"),
        ("!!int {a: 1}", "expected a scalar node, but found mapping"),
        ("!!map [a]", "expected a mapping node, but found sequence"),
        ("!e!x y", "found undefined tag handle '!e!'"),
        ("? [a, b]\n: c", "a key is no text; put it in quotes"),
        ("? {a: b}\n: c", "a key is no text; put it in quotes"),
        ("{[a]: b}", "a key is no text; put it in quotes"),
        ("1: a", "a key is no text; put it in quotes"),
        ("true: a", "a key is no text; put it in quotes"),
        ("~: a", "a key is no text; put it in quotes"),
        ("!!int 1: a", "a key is no text; put it in quotes"),
        ("{a: 1, 'a': 2}", "the key 'a' stands twice in one mapping"),
        (r'{"\ud83d\ude00": 1, "😀": 2}', "the key '😀' stands twice in one mapping"),
        ("{<<: {a: 1}, <<: {b: 1}}", "the key '<<' stands twice in one mapping"),
        ("<<: 3", "only mappings can be merged"),
        ("<<: [{a: 1}, 3]", "only mappings can be merged"),
        ("&a {<<: *a}", "a mapping merges itself"),
        ("&a {<<: [&b {<<: *a}]}", "a mapping merges itself"),
        ("[<<]", "could not determine a constructor for the tag '!!merge'"),
        ("a: \x85b", "the character U+0085 may be read as a line break; write it as an escape"),
        ("'a\u2028b'", "the character U+2028 may be read as a line break; write it as an escape"),
        ("a: \x07", "the character U+0007 is not allowed"),
        ("[a", "expected ',' or ']', but got '<stream end>'"),
        ("*a", "found undefined alias 'a'"),
    ],
)
def test_what_json_has_no_form_for_is_refused_with_its_line(text: str, problem: str | None) -> None:
    if problem is None:
        assert parse_yaml(text)
        return
    with pytest.raises(YamlProblem) as caught:
        parse_yaml(f"\n\n{text}")
    assert str(caught.value).startswith(problem)
    assert ", line 3 column " in str(caught.value) or ", line 4 column " in str(caught.value)


def test_merges_give_what_the_mapping_does_not_say_itself() -> None:
    text = """
base: &base {x: 1, y: 1}
inner: [[&inner {<<: *base, x: 2}]]
outer: {<<: *inner, y: 3}
both: {<<: [{x: 8}, *inner, {z: 9}]}
"""
    assert parse_yaml(text) == {
        "base": {"x": 1, "y": 1},
        "inner": [[{"x": 2, "y": 1}]],
        "outer": {"x": 2, "y": 3},
        "both": {"x": 8, "y": 1, "z": 9},
    }


ODD = ["1e3", "0o17", "010", "22:30", "yes", "null", "~", "", "<<", "=", "1_000", "0x1F", ".inf", "2026-01-01", "😀"]
ODD += [
    "\u2028",
    "\x85",
    "a\u2029 b",
    "a: b",
    "- x",
    "#c",
    "&a",
    "*a",
    "!x",
    "\ufeff",
    "\t",
    "\n",
    " x ",
    "\x00",
    "\x7f",
]
texts = st.sampled_from(ODD) | st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(values)
def test_what_is_written_is_read_back_to_the_letter(value: Any) -> None:
    assert repr(parse_yaml(dump_yaml(value))) == repr(value)


@pytest.mark.parametrize("text", ODD)
def test_odd_text_is_written_so_that_it_stays_text(text: str) -> None:
    assert parse_yaml(dump_yaml({text: text})) == {text: text}


def test_a_time_is_no_number_of_seconds(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text("id: w\nnodes:\n  - {id: n, type: t, timeout: 1:30}\n")
    with pytest.raises(WorkflowInvalid, match=r"nodes\[0\].timeout: Input should be a valid number"):
        load_workflow(file)
    file.write_text("id: w\nnodes:\n  - {id: n, type: t, config: {at: 22:30, mode: 0o644}}\n")
    assert load_workflow(file).nodes[0].config == {"at": "22:30", "mode": 420}
    file.write_text("id: w\nnodes:\n  - {id: n, type: t, config: {200: ok}}\n")
    with pytest.raises(
        ConfigurationError, match=r"w\.yaml is not YAML: a key is no text; put it in quotes, line 3 column 31"
    ):
        load_workflow(file)
