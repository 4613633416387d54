"""An input type is any type that pydantic knows; what is stored of its values is JSON that it reads back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID, uuid4

import pytest
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    PrivateAttr,
    SecretStr,
    TypeAdapter,
    computed_field,
    field_serializer,
    field_validator,
)
from typing_extensions import TypedDict  # the one that pydantic takes on every Python

from spanloom.engine.errors import ConfigurationError, PayloadRejected
from spanloom.engine.handlers.builder import WorkflowBuilder
from spanloom.engine.handlers.handler import Handler
from spanloom.engine.handlers.json_type import strict_adapter
from support.case_ids import case_id

DAY = date(2026, 1, 2)


class Colour(Enum):
    RED = "red"


@dataclass
class Line:
    sku: str
    day: date = DAY


@dataclass(eq=False)
class Unequal:
    day: date


class Pair(NamedTuple):
    number: int
    day: date


class Size(TypedDict):
    day: date


class Order(BaseModel):
    day: date
    prices: dict[int, Decimal]
    tags: set[Colour] = set()


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    day: date
    colour: Colour


class Aliased(BaseModel):
    number: int = Field(alias="no")


class TwoAliases(BaseModel):
    number: int = Field(validation_alias="in", serialization_alias="out")


class Choices(BaseModel):
    numbers: list[TwoAliases] = Field(validation_alias=AliasChoices("a", "b"))


class ByNameToo(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    number: int = Field(validation_alias="in", serialization_alias="out")


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    cents: int

    @computed_field  # type: ignore[prop-decorator]  # as pydantic documents it
    @property
    def euros(self) -> float:
        return self.cents / 100


class Nested(BaseModel):
    inner: Json[list[int]]


class Rounded(BaseModel):
    seconds: timedelta

    @field_serializer("seconds")
    def _write(self, seconds: timedelta) -> float:
        return seconds.total_seconds()


class Made(BaseModel):
    id: UUID = Field(default_factory=uuid4)
    _seen: UUID = PrivateAttr(default_factory=uuid4)


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    name: str


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str


#: Types, a value of each, and JSON data that stands for the same value.
KNOWN: list[tuple[Any, Any, Any]] = [
    (date, DAY, "2026-01-02"),
    (UUID, UUID(int=7), str(UUID(int=7))),
    (Decimal, Decimal("1.50"), "1.50"),
    (timedelta, timedelta(minutes=1), 60),
    (Colour, Colour.RED, "red"),
    (bytes, b"tea", "tea"),
    (set[int], {1, 2}, [2, 1, 2]),
    (frozenset[date], frozenset({DAY}), ["2026-01-02"]),
    (tuple[int, date], (1, DAY), [1, "2026-01-02"]),
    (dict[int, str], {1: "a"}, {"1": "a"}),
    (dict[date, Decimal], {DAY: Decimal(1)}, {"2026-01-02": 1}),
    (Line, Line("tea"), {"sku": "tea"}),
    (list[Line], [Line("tea", date(2020, 1, 1))], [{"sku": "tea", "day": "2020-01-01"}]),
    (Unequal, Unequal(DAY), {"day": "2026-01-02"}),
    (Pair, Pair(1, DAY), [1, "2026-01-02"]),
    (Size, {"day": DAY}, {"day": "2026-01-02"}),
    (Line | None, None, None),
    (date | int, DAY, "2026-01-02"),
    (Annotated[Decimal, Field(gt=0)], Decimal("0.1"), "0.1"),
    (Order, Order(day=DAY, prices={7: Decimal("9.90")}), {"day": "2026-01-02", "prices": {"7": "9.90"}}),
    (Strict, Strict(day=DAY, colour=Colour.RED), {"day": "2026-01-02", "colour": "red"}),
    (Aliased, Aliased(no=7), {"no": 7}),
    (TwoAliases, TwoAliases.model_validate({"in": 7}), {"in": 7}),
    (Choices, Choices.model_validate({"a": [{"in": 7}]}), {"b": [{"in": 7}]}),
    (ByNameToo, ByNameToo(number=7), {"in": 7}),
    (Computed, Computed(cents=7), {"cents": 7}),
    (Nested, Nested(inner="[1]"), {"inner": "[1]"}),  # type: ignore[arg-type]  # what Json[…] takes
    (Rounded, Rounded(seconds=timedelta(seconds=9)), {"seconds": "PT9S"}),
    (Annotated[Cat | Dog, Field(discriminator="kind")], Dog(name="Rex"), {"kind": "dog", "name": "Rex"}),
    (list[Cat | Dog], [Dog(name="Rex")], [{"kind": "dog", "name": "Rex"}]),
]


@pytest.mark.parametrize(("type_", "value", "data"), KNOWN, ids=lambda it: case_id(it)[:40])
def test_a_value_of_the_type_and_json_data_are_stored_as_json_that_reads_back(
    type_: Any, value: Any, data: Any
) -> None:
    builder = WorkflowBuilder[Any]("w", input=type_)
    for given in (value, data):
        text = builder.encode_input(given, 1_000)
        for adapter in (TypeAdapter(type_), strict_adapter(type_)):  # the second is a handler's
            again = adapter.validate_json(text)
            assert repr(again) == repr(value) or type_ is Unequal
        assert builder.encode_input(builder.validate_input(again), 1_000) == text


@pytest.mark.parametrize(
    ("type_", "value"),
    [(type_, value) for type_, value, _ in KNOWN if isinstance(value, BaseModel | Line | list)],
    ids=lambda it: case_id(it)[:40],
)
def test_a_result_is_stored_as_json_that_its_type_reads_back(type_: Any, value: Any) -> None:
    def returns() -> Any:
        return value

    returns.__annotations__["return"] = type_
    text = Handler("t", returns).encode_result(value, "the result", 1_000)

    assert strict_adapter(type_).validate_json(text) == value


def test_a_result_that_its_type_does_not_read_back_is_stored_as_the_type_writes_it() -> None:
    class Hidden(BaseModel):
        shown: int
        hidden: int = Field(default=7, exclude=True)

    text = Handler("t", lambda: None).encode_result(Hidden(shown=1, hidden=2), "the result", 1_000)

    assert text == '{"shown":1}'


def test_a_validator_that_breaks_keeps_no_result_from_being_stored() -> None:
    class Broken(BaseModel):
        number: int

        @field_validator("number")
        @classmethod
        def look_up(cls, number: int) -> int:
            return {1: 1}[number]

    text = Handler("t", lambda: None).encode_result(Broken.model_construct(number=2), "the result", 1_000)

    assert text == '{"number":2}'


def test_defaults_are_filled_in_once_so_that_all_nodes_see_the_same() -> None:
    builder = WorkflowBuilder("w", input=Made)
    text = builder.encode_input({}, 1_000)
    assert Made.model_validate_json(text).id == Made.model_validate_json(text).id


def test_what_is_iterated_over_once_is_stored_whole() -> None:
    assert WorkflowBuilder("w", input=Iterable[int]).encode_input([1, "2"], 100) == "[1,2]"  # type: ignore[type-abstract]


def test_a_subclass_keeps_its_own_fields() -> None:
    class Tom(Cat):
        age: int

    assert WorkflowBuilder("w", input=Cat).encode_input(Tom(name="Tom", age=7), 100) == (
        '{"kind":"cat","name":"Tom","age":7}'
    )


class Login(BaseModel):
    user: str
    password: SecretStr


class Hidden(BaseModel):
    number: int
    token: str = Field("", exclude=True)


class Doubled(BaseModel):
    number: int

    @field_validator("number")
    @classmethod
    def _double(cls, number: int) -> int:
        return 2 * number


@dataclass
class Account:
    user: str
    password: SecretStr = field(compare=False)


LOSSY: list[tuple[Any, Any, Any, str]] = [
    (SecretStr, SecretStr("xyzzy"), "xyzzy", "$"),
    (Login, Login(user="a", password=SecretStr("xyzzy")), {"user": "a", "password": "xyzzy"}, "$.password"),
    (Hidden, Hidden(number=1, token="xyzzy"), {"number": 1, "token": "xyzzy"}, "$.token"),
    (Account, Account("a", SecretStr("xyzzy")), {"user": "a", "password": "xyzzy"}, "$.password"),
    (Doubled, Doubled(number=1), {"number": 1}, "$.number"),
    (list[Login], [Login(user="a", password=SecretStr("x"))], [{"user": "a", "password": "x"}], "$[0].password"),
]


@pytest.mark.parametrize(("type_", "value", "data", "path"), LOSSY, ids=lambda it: case_id(it)[:40])
def test_what_json_would_lose_is_kept_as_it_was_given_or_refused(type_: Any, value: Any, data: Any, path: str) -> None:
    builder = WorkflowBuilder[Any]("w", input=type_)
    stored = builder.encode_input(data, 1_000)
    assert TypeAdapter(type_).validate_json(stored) == TypeAdapter(type_).validate_python(data)
    assert "*" not in stored
    with pytest.raises(PayloadRejected) as caught:
        builder.encode_input(value, 1_000)
    assert str(caught.value).startswith(
        f"the input of workflow 'w' would not be read back from JSON as it is: {path} differs; start with JSON data"
    )
    assert "xyzzy" not in str(caught.value)


@pytest.mark.parametrize(
    ("type_", "value", "sentence"),
    [
        (bytes, b"\xff", "can't be written as JSON: "),
        (date, "yesterday", "does not fit: Input should be a valid date"),
        (float, float("nan"), "can't be written as JSON: $ is a number that is not finite"),
        (dict[tuple[int, int], int], {(1, 2): 3}, "would not be read back from JSON as it is: "),
        (Any, object(), "can't be written as JSON: "),
        ("Missing", 1, "does not fit: its type can't be used (`TypeAdapter[Missing]` is not fully defined"),
        (str, "x" * 99, "takes 101 bytes as JSON, more than the limit of 100"),
    ],
)
def test_what_cannot_be_stored_is_refused_at_the_start(type_: Any, value: Any, sentence: str) -> None:
    with pytest.raises(PayloadRejected) as caught:
        WorkflowBuilder[Any]("w", input=type_).encode_input(value, 100)
    assert str(caught.value).startswith(f"the input of workflow 'w' {sentence}")


def test_a_type_that_pydantic_does_not_know_is_refused_by_the_builder() -> None:
    class Client: ...

    with pytest.raises(ConfigurationError, match=r"the input type of workflow 'w' can't be used \(Unable to generate"):
        WorkflowBuilder("w", input=Client)
