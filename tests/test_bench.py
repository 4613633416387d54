"""The bench's own rules: what is left out, what ratios are to, and that a lost or repeated node is found."""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "bench"
PEER = """
import os, sys
from driver import Driver, ran, ready

class Peer(Driver):
    def start(self, runs, stages):
        nodes = [(run, stage, number) for run in runs for stage, width in enumerate(stages) for number in range(width)]
        for node in eval(sys.argv[1])(nodes):
            ran(*node)

    def wait(self):
        pass

Peer().drive()
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The modules of the bench, which import each other by their bare names."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    names = ("cpu", "outcome", "peer_systems", "report", "run", "systems", "workloads")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(BENCH)):
            del sys.modules[name]


def _system(bench: SimpleNamespace, name: str, figure: float | None, *, optional: bool = True) -> Any:
    """A system that measures `figure` every time, or fails."""
    systems: ModuleType = bench.systems

    class Player(systems.Player):
        def play(self, workload: Any) -> list[float]:
            if figure is None:
                raise systems.BenchFailed(f"{name} lost a node:\nand more")
            return [workload.nodes / figure]

    class Fake(systems.System):
        @contextlib.contextmanager
        def playing(self, _ground: Any) -> Generator[Any]:
            yield Player()

    fake = Fake()
    fake.name, fake.title, fake.optional = name, name.upper(), optional
    return fake


@pytest.fixture
def servers(bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.run, "redis_server", lambda: contextlib.nullcontext(None))
    monkeypatch.setattr(bench.run, "redis_version", lambda _: {"Redis": "0"})


def _measure(bench: SimpleNamespace, *systems: Any) -> Any:
    workloads = [work for work in bench.workloads.WORKLOADS if not work.one_by_one]
    return bench.run._measure(systems, workloads, 2)


@pytest.mark.usefixtures("servers")
def test_ratios_are_to_bullmq_or_else_to_rq(bench: SimpleNamespace) -> None:
    ours, bullmq, rq = (_system(bench, *of) for of in (("ours", 300.0), ("bullmq", 200.0), ("rq-simple", 100.0)))
    both, without = _measure(bench, ours, bullmq, rq), _measure(bench, ours, rq)
    assert both.ratio(ours, both.workloads[0]) == pytest.approx(1.5)
    assert without.ratio(ours, without.workloads[0]) == pytest.approx(3.0)
    assert "| OURS | 300 (1.50) |" in bench.report.as_markdown(both)
    assert "| OURS | 3.00 |" in bench.report.as_ratios(without)
    assert json.loads(json.dumps(bench.report.as_json(both)))["systems"]["ours"]["figures"]["W1"]["rounds"]


@pytest.mark.usefixtures("servers")
def test_a_peer_that_fails_is_left_out_and_the_others_go_on(bench: SimpleNamespace) -> None:
    outcome = _measure(bench, _system(bench, "ours", 300.0), _system(bench, "bullmq", None))
    assert [system.name for system in outcome.systems] == ["ours"]
    assert "Left out: BULLMQ: bullmq lost a node." in bench.report.as_markdown(outcome)


@pytest.mark.usefixtures("servers")
def test_a_failure_of_ours_ends_the_bench(bench: SimpleNamespace) -> None:
    with pytest.raises(bench.systems.BenchFailed, match="lost a node"):
        _measure(bench, _system(bench, "ours", None, optional=False), _system(bench, "bullmq", 1.0))


@pytest.mark.parametrize(
    ("played", "wrong"),
    [
        ("lambda nodes: nodes", None),
        ("lambda nodes: nodes[1:]", "1 lost, 0 too often"),
        ("lambda nodes: nodes + nodes[:2]", "0 lost, 2 too often"),
    ],
)
def test_a_lost_or_repeated_node_is_found(
    bench: SimpleNamespace, tmp_path: Path, played: str, wrong: str | None
) -> None:
    environment = {
        "BENCH_LEDGER": str(tmp_path / "ledger"),
        "BENCH_READY": str(tmp_path),
        "PYTHONPATH": str(BENCH / "peers"),
    }
    command = [sys.executable, "-c", PEER, played]
    refused = pytest.raises(bench.systems.BenchFailed, match=wrong) if wrong else contextlib.nullcontext()
    with bench.peer_systems._driver(command, environment, tmp_path / "log") as driver:
        for workload in map(bench.workloads.quick, bench.workloads.WORKLOADS[:2]):
            with refused:
                driver.measure(workload)


def test_a_driver_that_dies_is_a_failure_with_the_end_of_its_log(bench: SimpleNamespace, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such server')"]
    with (
        pytest.raises(bench.systems.BenchFailed, match="no such server"),
        bench.peer_systems._driver(command, {}, tmp_path / "log"),
    ):
        pass


def test_every_peer_has_a_program_and_versions_that_are_fixed(bench: SimpleNamespace) -> None:
    for peer in bench.peer_systems.PEER_SYSTEMS:
        program = Path(peer._command("work")[1])
        assert program.exists()
        if program.suffix == ".py":
            pins = (program.parent / f"{peer.name}.txt").read_text().splitlines()
            assert all(re.fullmatch(r"[\w-]+(\[\w+\])?==[\w.]+", pin) for pin in pins), pins
        else:
            pinned = json.loads((program.parent / "package.json").read_text())["dependencies"]
            assert all(re.fullmatch(r"[\d.]+", version) for version in pinned.values()), pinned
        assert peer._versions()


def test_make_knows_how_to_install_every_peer(bench: SimpleNamespace) -> None:
    for peer in bench.peer_systems.PEER_SYSTEMS:
        target = f"{peer._home.relative_to(ROOT)}/ready"
        made = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr


def test_the_table_of_costs_has_a_row_for_each_function_that_counts(bench: SimpleNamespace) -> None:
    (workload, *_) = bench.workloads.WORKLOADS
    rounds = [
        {"workers": 200.0, "commits": 0.25, "function claim_v1": 40.0, "function rare_v1": 0.2},
        {"workers": 210.0, "commits": 0.35, "function claim_v1": 42.0},
        {"workers": 900.0, "commits": 0.30, "function claim_v1": 44.0},
    ]
    table = bench.cpu._as_markdown({"Postgres": "18"}, [workload], {"W1": bench.cpu._medians(rounds)}, len(rounds))
    assert "| workers, µs | 210 |" in table
    assert "| commits | 0.30 |" in table
    assert "| of the backends: `claim_v1` itself, µs | 42 |" in table
    assert "rare_v1" not in table


def test_every_name_that_a_program_takes_from_another_is_there(bench: SimpleNamespace) -> None:
    own = {path.stem for path in BENCH.glob("*.py")}
    taken = [
        (path.name, node.module, alias.name)
        for path in BENCH.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module in own
        for alias in node.names
    ]
    assert taken
    assert [one for one in taken if not hasattr(importlib.import_module(one[1]), one[2])] == []
