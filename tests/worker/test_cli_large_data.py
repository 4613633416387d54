"""Commands read what they show: an execution with much data is shown in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from spanloom.cli.exit_codes import run
from spanloom.engine import Node, Workflow
from spanloom.engine.store.requests import Outcome
from spanloom.stores import open_store
from spanloom.testing.driver import StoreDriver

NODES, ITEMS = 100, 50
MEGABYTE = json.dumps("x" * 1_000_000)
COMMANDS = [
    ["show", "EXECUTION"],
    ["show", "EXECUTION", "--json"],
    ["show", "EXECUTION", "--items", "each"],
    ["list"],
]
#: Runs commands over a small execution, to have all imported, and then over a large one with little memory beside that.
CHILD = """
import json, re, resource, sys
from spanloom.cli.exit_codes import run

commands, store, small, large = sys.argv[1:]
for execution in (small, large):
    for arguments in json.loads(commands):
        code = run([execution if argument == "EXECUTION" else argument for argument in arguments] + ["--store", store])
        print("CODE", code, flush=True)
    size = int(re.search(r"VmSize:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + 120_000_000,) * 2)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the size of a process is read from /proc")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """A store with an execution of little data, and one of nodes and items of a megabyte each."""
    url = f"sqlite:///{tmp_path_factory.mktemp('large')}/large.db"
    store = open_store(url)
    store.migrate()
    driver = StoreDriver(store)
    names = [f"n{number}" for number in range(NODES)]
    nodes = [Node(id="each", type="work", map="input"), *(Node(id=name, type="work") for name in names)]
    workflow = Workflow(id="large", nodes=nodes)
    found = []
    for megabytes in (False, True):
        data: dict[str, Any] = {"data": MEGABYTE} if megabytes else {}
        execution = driver.start(workflow, input=MEGABYTE if megabytes else "[]")
        driver.fan_out(execution, "each", list(range(ITEMS)))
        for node_id, item in [*((name, 0) for name in names), *(("each", item) for item in range(1, ITEMS + 1))]:
            claimed = driver.claim(execution, node_id, item)
            driver.send(driver.outcome(execution, claimed)._replace(**data))
        driver.run(execution, "each", Outcome.COMPLETED, data=[])
        found.append(execution)
    yield url, *found
    store.close()


def test_an_execution_with_much_data_is_shown_in_little_memory(filled: tuple[str, str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(COMMANDS), *filled],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    codes = [line for line in done.stdout.splitlines() if line.startswith("CODE")]
    assert codes == ["CODE 0"] * (2 * len(COMMANDS)), done.stderr[-3000:]


def test_a_document_has_the_sizes_of_what_it_leaves_out(
    filled: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    url, _, large = filled
    assert run(["show", large, "--json", "--store", url]) == 0
    nodes = [node for node in json.loads(capsys.readouterr().out)["nodes"] if node["item"] or node["node_id"] != "each"]

    assert len(nodes) == NODES + ITEMS
    assert {node["data_size"] for node in nodes} == {len(MEGABYTE)}
    assert sum(node["data"] is not None for node in nodes) == 16
