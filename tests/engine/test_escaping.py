"""What is shown is escaped by one rule: nothing controls a terminal, misleads its reader, or can't be encoded."""

from __future__ import annotations

import json
import unicodedata
from datetime import timedelta
from enum import Enum

import pytest

from spanloom.engine.escaping import escaped, escaped_json, shown
from spanloom.engine.store.states import ExecutionStatus

UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
EVERY = "".join(map(chr, range(0x110000)))
NAMED = "\x00\x1b\x7f\x80\x9b\x9f\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\ufeff\udfff\ud800"


def test_every_control_format_and_separator_character_and_every_surrogate_is_escaped() -> None:
    left = {unicodedata.category(character) for character in escaped(EVERY)}

    assert not left & set(UNSAFE)
    assert not set(escaped(EVERY)) & set(NAMED)


def test_everything_else_stays() -> None:
    assigned = [character for character in EVERY if unicodedata.category(character) not in (*UNSAFE, "Cn")]

    assert escaped("".join(assigned)) == "".join(assigned)


@pytest.mark.parametrize("text", ["\x1b[31m", "\u202ea", "caf\udce9", "\U000e0001", "a\\x1bb", "Zürich 日本　👍"])
def test_a_second_pass_changes_nothing(text: str) -> None:
    assert escaped(escaped(text)) == escaped(text)


def test_line_breaks_and_tabs_stay_where_they_are_meant() -> None:
    assert escaped("a\tb\nc\rd", keep="\n\t") == "a\tb\nc\\rd"
    assert escaped("a\tb\nc") == "a\\tb\\nc"


@pytest.mark.parametrize("indent", [None, 2])
def test_escaped_json_has_the_same_value_and_can_be_encoded(indent: int | None) -> None:
    document = {NAMED: [NAMED, "\U000e0001", "日本"]}

    text = escaped_json(json.dumps(document, ensure_ascii=False, indent=indent))

    assert json.loads(text) == document
    assert text.encode()
    assert not {unicodedata.category(character) for character in text.replace("\n", "")} & set(UNSAFE)
    assert "日本" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\x1b'", '"a\\x1b\'"'),
        ("x" * 61, "'" + "x" * 60 + "…'"),
        (b"redis://:secret@host", "20 bytes"),
        (17, "17"),
        (-(10**100), "a number of 333 bits"),
        (True, "True"),
        (None, "None"),
        (float("nan"), "nan"),
        (timedelta(seconds=1), "datetime.timedelta(seconds=1)"),
        (["secret"], "a list"),
        ({"password": "secret"}, "a dict"),
        (ExecutionStatus.FAILED, "failed"),
        (Enum("Odd\x1b", ["A"]).A, "Odd\\x1b.A"),  # type: ignore[misc]
        (object(), "an object"),
        (type("Odd\x1b", (str,), {})("secret"), "a test_escaping.Odd\\x1b"),
    ],
)
def test_an_error_shows_a_bounded_part_of_a_scalar_and_the_type_of_anything_else(value: object, text: str) -> None:
    assert shown(value).replace(__name__, "test_escaping") == text
