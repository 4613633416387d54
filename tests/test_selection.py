"""Each end-to-end behaviour runs over one store, the same in every process, and each store gets its share of them.

What is left out of `make test` is left to `make torture`, and of each test that repeats itself something is run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

from support.selection import KINDS, chosen, share_of

PROJECT = Path(__file__).parent.parent
#: What the processes of a store do to each other is tried over every store that several of them can open.
PROCESS_MODEL = {
    "test_crashes.py",
    "test_delivery.py",
    "test_events_outages.py",
    "test_outages.py",
    "test_races.py",
    "test_storms.py",
}
COLLECT = """
import json, sys
import pytest

class Collected:
    left_out, kept = [], []

    def pytest_deselected(self, items):
        self.left_out += items

    def pytest_collection_finish(self, session):
        self.kept += session.items

assert pytest.main(["-qq", "--collect-only", "tests/e2e"], plugins=[Collected()]) == 0
from support.selection import kind_of, kinds_for, name_of

def is_marked(item, *names):
    return any(item.get_closest_marker(name) for name in names)

with open(sys.argv[1], "w") as file:
    for items, kept in ((Collected.kept, True), (Collected.left_out, False)):
        for item in items:
            kind = kind_of(item)
            if kind is None or kind in kinds_for(item):
                name = item.nodeid.removeprefix("tests/") if kind is None else name_of(item, kind)
                found = {
                    "file": item.path.name,
                    "name": name,
                    "kind": kind,
                    "kept": kept,
                    "left": is_marked(item, "torture", "backend"),
                    "every_store": is_marked(item, "every_store"),
                    "one_in": is_marked(item, "one_in"),
                }
                print(json.dumps(found), file=file)
"""


class Collected(NamedTuple):
    """One test over one store that it is for, or over none."""

    file: str
    name: str
    kind: str | None
    kept: bool
    left: bool
    every_store: bool
    one_in: bool


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> list[Collected]:
    """The end-to-end tests, as another process with another hash seed collects them."""
    found = tmp_path_factory.mktemp("collected") / "found"
    seed = {"PYTHONHASHSEED": str(len(os.environ.get("PYTHONHASHSEED", "")) + 7)}
    ran = subprocess.run(
        [sys.executable, "-c", COLLECT, str(found)],
        cwd=PROJECT,
        env={**os.environ, **seed},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return [Collected(**json.loads(line)) for line in found.read_text().splitlines()]


def test_a_behaviour_is_tried_over_the_store_that_its_name_chooses(collected: list[Collected]) -> None:
    kinds, kept = defaultdict(set), defaultdict(set)
    for one in collected:
        if one.kind is not None and not one.every_store and not one.one_in:
            kinds[one.name].add(one.kind)
            if one.kept:
                kept[one.name].add(one.kind)
    assert len(kept) > 100
    assert kept == {name: {chosen(name, [one for one in KINDS if one in kinds[name]])} for name in kept}


def test_each_store_gets_between_a_quarter_and_a_half_of_the_behaviours(collected: list[Collected]) -> None:
    tried = Counter(one.kind for one in collected if one.kind is not None and one.kept and not one.every_store)
    shares = {kind: number / tried.total() for kind, number in tried.items()}
    assert set(shares) == set(KINDS)
    assert all(1 / 4 <= share <= 1 / 2 for share in shares.values()), shares


def test_what_the_processes_of_a_store_do_to_each_other_is_tried_over_every_store(collected: list[Collected]) -> None:
    marked = [one for one in collected if one.every_store]
    assert {one.file for one in marked} == PROCESS_MODEL
    tests, tried = (
        {(one.name.partition("[")[0], one.kind) for one in some if one.kind != "memory"}
        for some in ([one for one in marked if not one.one_in], [one for one in marked if one.kept and not one.one_in])
    )
    assert tried == tests
    assert [one for one in marked if one.kind == "memory" and one.kept] == []


def test_what_is_left_out_is_left_to_torture_and_nothing_else_is(collected: list[Collected]) -> None:
    assert [one for one in collected if one.kept == one.left] == []


def test_of_what_repeats_itself_the_same_share_is_tried_in_every_run() -> None:
    cases = [f"tests/test_x.py::test_y[{number}]" for number in range(10)]

    assert [len(share_of(cases[:number], 3)) for number in (1, 2, 3, 4, 10)] == [1, 1, 1, 2, 4]
    assert share_of(cases[::-1], 3) == share_of(cases, 3) == [cases[number] for number in (4, 5, 7, 6)]
