"""`make demo`: starts a Redis and two worker processes, runs the census on them, shows what came of it, and cleans up.

Data stays in .demo/ of the working directory: `spanloom show` and the like read it afterwards, and an execution that
was interrupted goes on the next time.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.rule import Rule
from rich.text import Text

from spanloom.cli.rendering import execution_tree, read_family, read_snapshot, waterfall
from spanloom.engine import (
    Execution,
    ExecutionFilter,
    ExecutionStatus,
    SpanloomError,
    WaitTimeout,
    WorkflowEngine,
)
from spanloom.testing.servers import redis_server

WORKERS = 2
HEAD_LINES = 12  # how much of the report is shown
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoFailed(Exception):
    """Say what went wrong with the demo itself."""


def main() -> int:
    """Run the demo and return the process's exit code."""
    screen = Console(highlight=False)
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    directory = Path(".demo").resolve()
    directory.mkdir(exist_ok=True)
    try:
        with redis_server() as redis:
            # What a real application has in its environment: where the store is, and where Redis is.
            os.environ["SPANLOOM_STORE_URL"] = f"sqlite:///{directory}/census.db"
            os.environ["SPANLOOM_REDIS_URL"] = redis.url
            with _workers(directory / "workers.log") as workers, _engine() as engine:
                _wait_for(workers, engine)
                screen.print(f"Redis and {WORKERS} worker processes run, logging to {_shown(directory)}/workers.log")
                execution_id = _start_or_go_on(engine, directory, screen)
                execution = _follow(engine, execution_id, workers, screen)
                _show(engine, execution, directory, screen)
    except (SpanloomError, DemoFailed) as error:
        screen.print(f"the demo failed: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        screen.print("\nstopped; type it again and the census goes on where it was")
        return 130
    return 0 if execution.status is ExecutionStatus.COMPLETED else 1


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # one is enough: nothing may interrupt the cleaning up
    raise KeyboardInterrupt


@contextmanager
def _workers(log_path: Path) -> Generator[subprocess.Popen[bytes]]:
    """Run `spanloom worker census:engine` while the block lasts. A node is pure computation: one slot a process."""
    command = [sys.executable, "-m", "spanloom.cli", "worker", "census:engine"]
    options = ["--processes", str(WORKERS), "--concurrency", "1", "--grace", "2s"]
    with log_path.open("wb") as log:
        workers = subprocess.Popen(
            [*command, *options],
            cwd=Path(__file__).parent,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches the demo, which then tells the workers
        )
        try:
            yield workers
        finally:
            workers.terminate()
            workers.wait()


def _wait_for(workers: subprocess.Popen[bytes], engine: WorkflowEngine) -> None:
    while len(engine.store.list_workers()) < WORKERS:
        _check(workers)
        time.sleep(0.05)


def _check(workers: subprocess.Popen[bytes]) -> None:
    if workers.poll() is not None:
        raise DemoFailed(f"the workers ended with exit code {workers.returncode}; see .demo/workers.log")


@contextmanager
def _engine() -> Generator[WorkflowEngine]:
    """Open the application's engine, imported under the name that the workers import it by."""
    from census import engine

    with engine:
        yield engine


def _start_or_go_on(engine: WorkflowEngine, directory: Path, screen: Console) -> str:
    begun = ExecutionFilter(workflow_id="census", status=ExecutionStatus.RUNNING)
    if found := engine.store.list_executions(begun, limit=1).items:
        screen.print(f"execution {found[0].id} goes on where it was interrupted")
        return found[0].id
    library = {"root": sysconfig.get_path("stdlib"), "report": f"{directory}/report.md"}
    execution_id = engine.enqueue_workflow("census", library, metadata={"python": sys.version.split()[0]})
    screen.print(f"execution {execution_id} has started")
    return execution_id


def _follow(engine: WorkflowEngine, execution_id: str, workers: subprocess.Popen[bytes], screen: Console) -> Execution:
    """Show how many nodes, and items of the mapped one, have ended until the execution has."""
    nodes = len(engine.builders["census"].workflow.nodes)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen, transient=True) as bar:
        task = bar.add_task("nodes", total=nodes)
        while True:
            try:
                return engine.wait(execution_id, timeout=0.3)
            except WaitTimeout:
                runs = engine.store.get_node_results(execution_id)
                listed = next((run.data for run in runs if run.node_id == "packages"), None) or ()
                bar.update(task, completed=sum(run.status.ended for run in runs), total=nodes + len(listed))
            _check(workers)


def _show(engine: WorkflowEngine, execution: Execution, directory: Path, screen: Console) -> None:
    if execution.status is ExecutionStatus.COMPLETED:
        report = Path(execution.output["report"])
        lines = report.read_text(encoding="utf-8").splitlines()
        screen.print(Rule(f"the head of {_shown(report)}"), Text("\n".join(lines[:HEAD_LINES])), "", sep="\n")
    tree = execution_tree(read_snapshot(engine.store, execution))
    family = read_family(engine.store, execution)
    spans = waterfall(family.spans, width=screen.width, now_ns=time.time_ns(), family=family.executions)
    screen.print(Group(Rule("what became of its nodes"), tree, Text(), Rule("where the time went"), spans, Text()))
    command, short = _command(), execution.id[-8:]
    screen.print(
        Rule("what to type next"),
        f"export SPANLOOM_STORE_URL={shlex.quote(os.environ['SPANLOOM_STORE_URL'])}",
        f"{command} show {short}      # every node; --json for all there is to know",
        f"{command} trace {short}     # where the time went",
        f"{command} logs {short}      # what the nodes logged",
        f"{command} list               # all executions, newest first",
        sep="\n",
        soft_wrap=True,
    )


def _command() -> str:
    """Return how to call `spanloom` from here: the demo may run in a virtual environment that is not activated."""
    beside = Path(sys.executable).with_name("spanloom")
    return "spanloom" if shutil.which("spanloom") == str(beside) or not beside.exists() else _shown(beside)


def _shown(path: Path) -> str:
    """Return a path as one would type it in the working directory."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
