"""What goes into JSON text comes out of it to the letter; what can't go in is refused with its place."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, Secret, SecretBytes, SecretStr, field_serializer

from spanloom.engine.errors import PayloadRejected
from spanloom.engine.payload import MAX_DEPTH, copied, decode, encode, find_faults

LIMIT = 1_000_000

any_text = st.text(st.characters())  # surrogates and NUL too
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(any_text, inner, max_size=5),
)


class Item(BaseModel):
    name: str
    price: float = 1.0


class Basket(BaseModel):
    items: list[Item]
    at: datetime
    kept_by: str = Field("shop", alias="keptBy")


def refusal(value: Any, limit: int = LIMIT) -> str:
    with pytest.raises(PayloadRejected) as caught:
        encode(value, "the result of node 'charge'", limit)
    return str(caught.value)


@given(json_values)
def test_any_json_value_comes_back_to_the_letter(value: Any) -> None:
    text = encode(value, "it", LIMIT)
    assert text.isascii()
    assert repr(decode(text)) == repr(value)  # repr tells 1 from 1.0 and True, 0.0 from -0.0, and shows key order


@pytest.mark.parametrize(
    "value",
    [0, False, "", None, [], {}, 1e16, -0.0, 10**400, -(2**63), "\x00", "\ud800", "ä€😀", {"b": 1, "a": 2}, 5e-324],
    ids=repr,
)
def test_the_values_that_other_encodings_lose_are_kept(value: Any) -> None:
    assert repr(decode(encode(value, "it", LIMIT))) == repr(value)


def test_tuples_become_lists_and_string_subclasses_strings() -> None:
    class Colour(StrEnum):
        RED = "red"

    class Point(NamedTuple):
        x: int
        y: int

    assert decode(encode({Colour.RED: (Point(1, 2), Colour.RED)}, "it", LIMIT)) == {"red": [[1, 2], "red"]}


def test_models_are_written_wherever_they_stand_so_that_they_read_back() -> None:
    basket = Basket(items=[Item(name="tea")], at=datetime(2026, 1, 2, tzinfo=UTC), keptBy="me")

    text = encode({"baskets": [basket]}, "it", LIMIT)

    assert json.loads(text)["baskets"][0]["keptBy"] == "me"
    assert Basket.model_validate(decode(text)["baskets"][0]) == basket


def test_decoding_twice_shares_nothing() -> None:
    text = encode({"a": [1]}, "it", LIMIT)
    decode(text)["a"].append(2)
    assert decode(text) == {"a": [1]}


@pytest.mark.parametrize(
    ("value", "path", "what"),
    [
        (math.nan, "$", "a number that is not finite"),
        ({"a": [1, 2, 3, {"b": math.inf}]}, "$.a[3].b", "a number that is not finite"),
        ({"odd key": [-math.inf]}, "$['odd key'][0]", "a number that is not finite"),
        (b"x", "$", "a bytes"),
        ({"a": {1, 2}}, "$.a", "a set"),
        ([datetime(2026, 1, 1, tzinfo=UTC)], "$[0]", "a datetime.datetime"),
        ([Decimal("1.5")], "$[0]", "a decimal.Decimal"),
        ({"a": {1: "x"}}, "$.a", "a dict with a key of type int"),
        ({"a": {None: "x"}}, "$.a", "a dict with a key of type NoneType"),
        ([{"ok": 1}, ({"a": 1, True: 2},)], "$[1][0]", "a dict with a key of type bool"),
        ({("a", "b"): 1}, "$", "a dict with a key of type tuple"),
        ([10**5000], "$[0]", "an integer of too many digits"),
        ([Item(name="x", price=math.nan)], "$[0].price", "a number that is not finite"),
        (object, "$", "a type"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_carry_is_refused_with_its_place(value: Any, path: str, what: str) -> None:
    assert refusal(value).startswith(f"the result of node 'charge' can't be written as JSON: {path} is {what};")


def test_a_model_that_pydantic_cannot_write_is_refused_with_its_place() -> None:
    class Holder(BaseModel):
        held: Any

    assert "$.a is a " in refusal({"a": Holder(held=object())})
    assert "Holder that pydantic can't write" in refusal({"a": Holder(held=object())})


def test_a_secret_is_refused_and_not_written_as_asterisks() -> None:
    class Login(BaseModel):
        user: str = "a"
        password: SecretStr = SecretStr("xyzzy")
        codes: dict[str, list[Secret[int]]] = {}

    @dataclass
    class Account:
        key: SecretBytes

    class Shown(Login):
        @field_serializer("password")
        def _show(self, password: SecretStr) -> str:
            return password.get_secret_value()

    for value, path in (
        (Login(), "$.password"),
        ([{"a b": Login()}], "$[0]['a b'].password"),
        (Account(SecretBytes(b"xyzzy")), "$.key"),
        (Login(password=SecretStr(""), codes={"a": [Secret(7)]}), "$.password"),
    ):
        message = refusal(value)
        assert f"can't be written as JSON: {path} is a secret, which pydantic writes as asterisks; " in message
        assert "xyzzy" not in message
    assert decode(encode(Shown(), "it", LIMIT)) == {"user": "a", "password": "xyzzy", "codes": {}}
    assert decode(encode("**********", "it", LIMIT)) == "**********"


def test_a_container_that_holds_itself_is_refused() -> None:
    ring: dict[str, Any] = {"a": []}
    ring["a"].append(ring)
    assert "$.a[0] is a container that holds itself" in refusal(ring)


def test_the_same_object_twice_is_no_ring() -> None:
    shared = {"x": 1}
    assert decode(encode([shared, shared], "it", LIMIT)) == [shared, shared]
    assert list(find_faults([shared, shared])) == []


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_nesting_is_limited_so_that_what_was_written_can_be_read() -> None:
    assert encode(nested(MAX_DEPTH), "it", LIMIT) == "[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH
    for levels in (MAX_DEPTH + 1, 100_000):
        message = refusal(nested(levels))
        assert f"nested more than {MAX_DEPTH} levels deep" in message
        assert len(message) < 500


def test_a_payload_over_the_limit_is_refused_with_both_sizes() -> None:
    assert encode("x" * 98, "it", 100) == f'"{"x" * 98}"'
    message = refusal("x" * 99, limit=100)
    assert "takes 101 bytes as JSON, more than the limit of 100" in message
    assert "the result of node 'charge'" in message


def test_the_limit_counts_bytes_as_stored() -> None:
    assert "takes 8 bytes" in refusal("€", limit=7)  # \u20ac and its quotes


def test_no_refusal_shows_the_data() -> None:
    for value in ({"a": ["top secret", b"top secret"]}, "top secret" * 20):
        assert "top secret" not in refusal(value, limit=100)


def test_a_copy_shares_no_container() -> None:
    original = {"a": [{"b": (1, 2)}]}
    copy = copied(original)
    copy["a"][0]["b"].append(3)
    assert original == {"a": [{"b": (1, 2)}]}
    assert copy == {"a": [{"b": [1, 2, 3]}]}
