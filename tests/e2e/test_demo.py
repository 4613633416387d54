"""`make demo` as a newcomer sees it: what it shows, what can be read afterwards, and that no process stays behind."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from spanloom.engine import Execution, ExecutionFilter, ExecutionStatus, NodeStatus
from spanloom.engine.store.port import ExecutionStore
from spanloom.stores import open_store
from support.fork_server import run_command

CENSUS = Path(__file__).parents[2] / "examples" / "census.py"
PATIENCE_SECONDS = 60.0
MARK = "SPANLOOM_TEST_MARK"

pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the demo's processes by /proc"),
]


class Demo:
    """One run of the demo in its own process group, and the processes that descend from it, wherever they went."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._mark = secrets.token_hex(8)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("SPANLOOM_")}
        self.process = subprocess.Popen(
            [sys.executable, str(CENSUS)],
            cwd=directory,
            env=clean | {MARK: self._mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, output

    def family(self) -> dict[int, str]:
        """Return the command lines of all living processes that inherited this run's mark."""
        found = {}
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"{MARK}={self._mark}".encode() in environment.read_bytes():
                    line = environment.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                    found[int(environment.parent.name)] = line
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it ended while we looked, or is another user's
        return found

    def worker_processes(self) -> dict[int, str]:
        return {pid: line for pid, line in self.family().items() if "spanloom.cli worker" in line}


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[[], Demo]]:
    started: list[Demo] = []

    def start() -> Demo:
        started.append(Demo(tmp_path))
        return started[-1]

    yield start
    for one in started:
        for pid in one.family():
            os.kill(pid, signal.SIGKILL)
        one.process.wait()
        if one.process.stdout is not None:
            one.process.stdout.close()


@contextmanager
def opened_store(directory: Path) -> Generator[ExecutionStore]:
    store = open_store(f"sqlite:///{directory}/.demo/census.db")
    store.open()
    try:
        yield store
    finally:
        store.close()


def only_execution(directory: Path) -> tuple[Execution, dict[tuple[str, int], Any]]:
    """The execution of the census, and its node runs by node and item; of a child nothing."""
    with opened_store(directory) as store:
        (listed,) = store.list_executions(ExecutionFilter(workflow_id="census")).items
        runs = {(run.node_id, run.item): run for run in store.get_node_results(listed.id)}
        execution = store.get_execution(listed.id)
    assert execution is not None
    return execution, runs


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def wait_until_half_way(demo: Demo) -> None:
    """Return when some nodes of the census have ended and others have not."""
    until(lambda: (demo.directory / ".demo" / "census.db").exists(), "the store is there")

    def some_ended() -> bool:
        assert demo.process.poll() is None, demo.end()
        with opened_store(demo.directory) as store:
            listed = store.list_executions(ExecutionFilter(workflow_id="census")).items
            return bool(listed) and sum(run.status.ended for run in store.get_node_results(listed[0].id)) >= 3

    until(some_ended, "a few nodes have ended")


def spanloom(*arguments: str, store: Path) -> str:
    """Run the command as the demo's last lines propose, with no Redis to be found."""
    environment = os.environ | {
        "SPANLOOM_STORE_URL": f"sqlite:///{store}",
        "SPANLOOM_REDIS_URL": "unix:///nowhere/redis.sock",
    }
    done = run_command(arguments, store.parent, environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_demo_shows_its_report_tree_and_waterfall_and_can_be_read_afterwards(
    demo: Callable[[], Demo], tmp_path: Path
) -> None:
    run = demo()
    code, output = run.end()

    assert code == 0, output
    assert run.family() == {}

    execution, runs = only_execution(tmp_path)
    assert execution.status is ExecutionStatus.COMPLETED
    tallies = runs["count", 0].data
    assert len(tallies) >= 30
    assert len(runs) == len(tallies) + 6
    retried = {key: run.attempt for key, run in runs.items() if run.attempt > 1}
    assert retried == {("count", [one["name"] for one in tallies].index("json") + 1): 3}
    assert runs["nothing_found", 0].status is NodeStatus.SKIPPED
    assert len({run.worker_id for run in runs.values() if run.worker_id}) == 2, "both workers took part"

    report = (tmp_path / ".demo" / "report.md").read_text()
    assert Path(execution.output["report"]) == tmp_path / ".demo" / "report.md"
    assert all(f"| {one['name']} |" in report for one in tallies)
    assert report.splitlines()[0] in output, "the report's head"
    assert "completed in" in output, "the tree"
    assert "━" in output, "the waterfall"

    short = execution.id[-8:]
    data = tmp_path / ".demo" / "census.db"
    assert f"show {short}" in output
    assert f"trace {short}" in output
    shown = json.loads(spanloom("show", short, "--json", store=data))
    assert {node["status"] for node in shown["nodes"]} == {"completed", "skipped"}
    assert len(json.loads(spanloom("trace", short, "--json", store=data))["spans"]) >= 2 * len(tallies) + 9
    assert '"counted"' in spanloom("logs", short, "--node", "count", "--json", store=data)
    listed = spanloom("list", store=data)
    assert execution.id in listed
    assert "ranking" in listed, "the child"


@pytest.mark.torture
def test_an_interrupted_demo_leaves_no_process_behind_and_goes_on_where_it_was(
    demo: Callable[[], Demo], tmp_path: Path
) -> None:
    # given: a demo half way through its nodes
    first = demo()
    wait_until_half_way(first)
    assert len(first.worker_processes()) == 3, "two workers and who looks after them"

    # when: Ctrl-C
    os.killpg(first.process.pid, signal.SIGINT)

    # then: everything is gone, and the execution stands where it was
    code, output = first.end()
    assert code == 130, output
    assert "Traceback" not in output
    assert first.family() == {}
    begun, runs_before = only_execution(tmp_path)
    ended = {key: run for key, run in runs_before.items() if run.status is NodeStatus.COMPLETED}
    assert begun.status is ExecutionStatus.RUNNING
    assert len(ended) > 0

    # when: it is typed again
    code, output = demo().end()

    # then: the same execution completes, and what had ended is not run a second time
    assert code == 0, output
    execution, runs = only_execution(tmp_path)
    assert execution.id == begun.id
    assert execution.status is ExecutionStatus.COMPLETED
    assert {key: run.started_at for key, run in ended.items()} == {key: runs[key].started_at for key in ended}


@pytest.mark.torture
def test_a_demo_that_loses_its_workers_says_so_and_leaves_no_process_behind(demo: Callable[[], Demo]) -> None:
    run = demo()
    wait_until_half_way(run)
    (supervisor,) = (pid for pid, line in run.worker_processes().items() if "--processes 2" in line)

    os.kill(supervisor, signal.SIGKILL)

    code, output = run.end()
    assert code == 1
    assert "the workers ended with exit code -9; see .demo/workers.log" in output
    until(lambda: run.family() == {}, "the orphaned workers have ended by themselves")
