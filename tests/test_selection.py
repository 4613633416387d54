"""Each end-to-end behaviour runs over one store, the same in every process, and each store gets its share of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

from support.selection import KINDS, chosen

PROJECT = Path(__file__).parent.parent
#: What the processes of a store do to each other is tried over every store.
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

with open(sys.argv[1], "w") as file:
    for items, kept in ((Collected.kept, True), (Collected.left_out, False)):
        for item in items:
            if (kind := kind_of(item)) is not None and kind in kinds_for(item):
                every = item.get_closest_marker("every_store") is not None
                print(json.dumps([item.path.name, name_of(item, kind), kind, kept, every]), file=file)
"""


class Collected(NamedTuple):
    """One test over one store that it is for."""

    file: str
    name: str
    kind: str
    kept: bool
    every_store: bool


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
    return [Collected(*json.loads(line)) for line in found.read_text().splitlines()]


def test_a_behaviour_is_tried_over_the_store_that_its_name_chooses(collected: list[Collected]) -> None:
    kinds, kept = defaultdict(set), defaultdict(set)
    for one in collected:
        if not one.every_store:
            kinds[one.name].add(one.kind)
            if one.kept:
                kept[one.name].add(one.kind)
    assert len(kept) > 100
    assert kept == {name: {chosen(name, [one for one in KINDS if one in kinds[name]])} for name in kept}


def test_each_store_gets_between_a_quarter_and_a_half_of_the_behaviours(collected: list[Collected]) -> None:
    tried = Counter(one.kind for one in collected if one.kept and not one.every_store)
    shares = {kind: number / tried.total() for kind, number in tried.items()}
    assert set(shares) == set(KINDS)
    assert all(1 / 4 <= share <= 1 / 2 for share in shares.values()), shares


def test_what_the_processes_of_a_store_do_to_each_other_is_tried_over_every_store(collected: list[Collected]) -> None:
    marked = [one for one in collected if one.every_store]
    assert {one.file for one in marked} == PROCESS_MODEL
    assert [one for one in marked if not one.kept] == []
