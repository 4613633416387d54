"""What options may be given as, and what is said of the rest."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest

from spanloom.cli.options.parameters import duration, find_execution, json_value, moment, node_and_item, pair
from spanloom.engine.errors import UnknownExecution, UserError
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import StartRequest
from spanloom.stores import open_store
from spanloom.testing.workflows import single

FIRST = "019cb2f4-1111-7abc-8def-0123456789ab"
SECOND = "019cb2f4-2222-7abc-8def-ba9876543210"


@pytest.mark.parametrize(
    ("given", "seconds"), [("90", 90), ("500ms", 0.5), ("30s", 30), ("5m", 300), ("1.5 h", 5400), ("1d", 86400)]
)
def test_a_duration_is_seconds_or_has_a_unit(given: str, seconds: float) -> None:
    assert duration(given) == seconds


@pytest.mark.parametrize("given", ["", "-5", "5 weeks", "soon"])
def test_another_duration_is_refused_with_what_would_be_right(given: str) -> None:
    with pytest.raises(click.BadParameter, match="500ms, 30s, 5m, 2h, 1d"):
        duration(given)


@pytest.mark.parametrize("given", ["9999999999d", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_that_no_calendar_has_is_refused(given: str) -> None:
    with pytest.raises(click.BadParameter, match="an ISO time"):
        moment(given)


def test_a_time_is_iso_or_a_while_ago() -> None:
    assert moment("2026-03-01T10:00:00+01:00") == datetime(2026, 3, 1, 9, tzinfo=UTC)
    assert abs(datetime.now(UTC) - timedelta(hours=2) - moment("2h")) < timedelta(minutes=1)
    with pytest.raises(click.BadParameter, match="an ISO time"):
        moment("yesterday")


def test_no_more_of_a_file_or_of_standard_input_is_read_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spanloom.cli.options.parameters.MAX_GIVEN_CHARACTERS", 1024)
    file, stdin = tmp_path / "input.json", io.StringIO("1" * 5_000)
    file.write_text("1" * 5_000)
    monkeypatch.setattr(sys, "stdin", stdin)

    for given in ("-", f"@{file}", "1" * 5_000):
        with pytest.raises(click.BadParameter, match="is larger than 1 KiB"):
            json_value(given)
    assert stdin.tell() < 1_100


def test_json_is_given_as_text_in_a_file_or_on_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "input.json"
    file.write_text('{"name": "Jürgen"}', encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.StringIO("[1, 2]"))
    assert json_value("false") is False
    assert json_value(f"@{file}") == {"name": "Jürgen"}
    assert json_value("-") == [1, 2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{id: 7}", "the JSON is not valid: Expecting property name"),
        ("NaN", "NaN is no JSON value"),
        ("@no-such-file", "can't read no-such-file: No such file"),
        (f"@{__file__}", f"the JSON in {__file__} is not valid"),
    ],
)
def test_other_json_is_refused_with_its_place(given: str, said: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        json_value(given)
    assert said in caught.value.message


@pytest.mark.parametrize(("given", "found"), [("a=b", ("a", "b")), ("a=b=c", ("a", "b=c")), ("a=", ("a", ""))])
def test_a_pair_is_split_at_its_first_equals_sign(given: str, found: Any) -> None:
    assert pair(given) == found


@pytest.mark.parametrize("given", ["a", "=b", ""])
def test_a_pair_without_key_or_equals_sign_is_refused(given: str) -> None:
    with pytest.raises(click.BadParameter, match="KEY=VALUE"):
        pair(given)


class TestFindExecution:
    @pytest.fixture
    def store(self) -> Iterator[ExecutionStore]:
        store = open_store("memory://")
        store.open()
        store.save_workflow(single("orders"))
        store.create_executions([StartRequest(one, "orders", "null") for one in (FIRST, SECOND)])
        yield store
        store.close()

    @pytest.mark.parametrize("given", [FIRST, FIRST.upper(), "6789ab", "019cb2f4-1"])
    def test_a_whole_id_or_a_telling_end_of_it_finds_the_execution(self, store: ExecutionStore, given: str) -> None:
        assert find_execution(store, given).id == FIRST

    def test_an_ambiguous_part_is_refused_with_what_it_fits(self, store: ExecutionStore) -> None:
        with pytest.raises(UserError) as caught:
            find_execution(store, "019cb2")
        assert FIRST in str(caught.value)
        assert SECOND in str(caught.value)

    def test_a_part_that_fits_nothing_is_refused(self, store: ExecutionStore) -> None:
        with pytest.raises(UserError, match="`spanloom list` shows them"):
            find_execution(store, "ffffff")

    def test_a_short_part_is_refused(self, store: ExecutionStore) -> None:
        with pytest.raises(UserError, match="at least 6 characters"):
            find_execution(store, "6789a")

    def test_an_unknown_whole_id_is_refused(self, store: ExecutionStore) -> None:
        with pytest.raises(UnknownExecution):
            find_execution(store, FIRST.replace("1", "9"))


def test_a_node_run_is_a_node_or_one_of_its_items() -> None:
    assert node_and_item("price") == ("price", 0)
    assert node_and_item("price:12") == node_and_item("price[12]") == ("price", 12)


@pytest.mark.parametrize(
    "given", ["", ":3", "price:", "price:0", "price:-1", "price:two", "price[3", "price3]", "price:3]", "[3]"]
)
def test_another_node_run_is_refused_with_what_would_be_right(given: str) -> None:
    with pytest.raises(click.BadParameter, match="write NODE, or NODE:ITEM with an item from 1"):
        node_and_item(given)
