"""Problems are worded with their place and without the data."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, field_validator

from spanloom.engine.wording import did_you_mean, problem_sentences, quoted_list


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Home(BaseModel, extra="forbid"):
    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]]

    @field_validator("pets")
    @classmethod
    def _some(cls, pets: list[Cat | Dog]) -> list[Cat | Dog]:
        if not pets:
            raise ValueError("give it a pet")
        return pets


def told(data: object) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(list[Home]).validate_python([data])
    return problem_sentences(caught.value)


def test_each_complaint_has_its_place() -> None:
    assert told({"pets": [{"kind": "cat"}, {}], "cars": 1}) == [
        "[0].pets[1]: Unable to extract tag using discriminator 'kind'",
        "[0].cars: is not a known key",
    ]
    assert told(5) == ["[0]: Input should be a valid dictionary or instance of Home"]


def test_a_validators_own_words_stand_alone() -> None:
    assert told({"pets": []}) == ["[0].pets: give it a pet"]


def test_a_tag_that_is_not_known_is_not_shown() -> None:
    assert told({"pets": [{"kind": "secret"}]}) == ["[0].pets[0]: the tag must be one of 'cat', 'dog'"]


def test_a_close_word_is_suggested_and_a_far_one_is_not() -> None:
    assert did_you_mean("chrage", ["charge", "email"]) == " (did you mean 'charge'?)"
    assert did_you_mean("zzz", ["charge", "email"]) == ""
    assert did_you_mean("zzz", []) == ""


def test_a_long_list_is_cut() -> None:
    assert quoted_list(["a", "b"]) == "'a', 'b'"
    assert quoted_list([str(number) for number in range(8)], limit=2) == "'0', '1' and 6 more"
