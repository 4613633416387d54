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
    names = (
        *("cpu", "outcome", "peer_systems", "report", "run", "systems", "workloads"),
        *("scale", "scale_bytes", "scale_curve", "scale_rates", "scale_workers"),
    )
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


def test_every_curve_of_growth_has_its_place_in_the_document(bench: SimpleNamespace) -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    for name in bench.scale.CURVES:
        marks = [f"<!-- {bench.scale.block(name)}:{edge} -->" for edge in ("begin", "end")]
        assert [text.count(mark) for mark in marks] == [1, 1]
    shown = set(re.findall(r"\]\(plots/(\w+)\.svg\)", text))
    assert shown == {path.stem for path in bench.scale.PLOTS.iterdir()}
    assert shown <= set(bench.scale.CURVES)


def test_make_knows_how_to_install_what_draws_the_curves_at_a_fixed_version(bench: SimpleNamespace) -> None:
    target = f"{bench.scale.PLOTTER.relative_to(ROOT)}/ready"
    made = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert re.fullmatch(r"matplotlib==[\d.]+\n", (BENCH / "plots.txt").read_text())


def test_a_curve_shows_what_was_not_measured_and_why(bench: SimpleNamespace) -> None:
    run = bench.scale_curve.Run(None, None, None, lambda _: None, seconds=-1.0)
    assert not run.begins("8 processes")
    table = bench.scale_curve.Table(["processes", "of", "nodes/s"], [0, 0, 1], [(4, "W1", 1234.56), (8, "W1", None)])
    text = bench.scale_curve.Curve([table], [], run.notes, {"cores": 2}).as_markdown()
    assert text.splitlines()[1:4] == ["|---:|---|---:|", "| 4 | W1 | 1,234.6 |", "| 8 | W1 | - |"]
    assert "No time was left for: 8 processes. cores 2." in text


@pytest.mark.parametrize(
    ("busy", "cores", "waits", "limit"),
    [
        (0.95, {"workers": 1.2, "backends": 0.4}, {"LWLock WALWrite": 9.0}, "worker processes have 75% of ours"),
        (0.50, {"redis": 0.9}, {}, "Redis"),
        (0.50, {"starter": 0.9}, {}, "starts and waits"),
        (0.50, {"workers": 1.8}, {}, "a core each"),
        (0.50, {"workers": 0.5}, {"at work": 1.0, "LWLock WALWrite": 2.0, "Client ClientRead": 8.0}, "LWLock WALWrite"),
        (0.50, {"workers": 0.5}, {"at work": 1.0, "IO WalSync": 0.5}, "nothing is full"),
    ],
)
def test_what_limits_first_is_what_is_full(
    bench: SimpleNamespace, busy: float, cores: dict[str, float], waits: dict[str, float], limit: str
) -> None:
    nothing = dict.fromkeys(("workers", "backends", "postgres", "redis", "starter"), 0.0)
    assert limit in bench.scale_workers.first_limit(busy, nothing | cores, 2, waits)


def test_growth_is_the_slope_through_all_samples(bench: SimpleNamespace) -> None:
    assert bench.scale_bytes.growth([(0, 10.0), (10, 11.0), (20, 12.0)]) == pytest.approx(0.1)


@pytest.mark.parametrize(("shape", "edges"), [("wide", 16), ("deep", 9)])
def test_a_graph_has_its_shape(bench: SimpleNamespace, shape: str, edges: int) -> None:
    nodes = bench.scale_rates.graph(shape, 10).nodes
    assert (len(nodes), sum(len(node.inputs) for node in nodes)) == (10, edges)


@pytest.mark.torture
def test_a_quick_look_at_growth_prints_a_table(bench: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.scale.main(["--quick", "--only", "bytes"]) == 0
    printed = capsys.readouterr().out
    assert "| W3: one node |" in printed
    assert "| `node_results` |" in printed


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
