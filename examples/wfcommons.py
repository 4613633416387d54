"""Replays a recorded scientific workflow, a WfCommons instance: `python examples/wfcommons.py FILE`.

A node per task sleeps its recorded runtime, scaled, and passes on the names of the files that the task wrote. Each
checks that the data of every parent reached it, and the report checks from the store that every edge was respected.
It brings a Redis, a SQLite file and worker processes of its own; --store and --redis name others.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from wfformat import Instance, InstanceInvalid, few, lineage, read_instance, shown

from spanloom.engine import (
    Execution,
    ExecutionStatus,
    Node,
    NodeContext,
    NodeRegistry,
    NodeRun,
    NodeStatus,
    SpanloomError,
    WaitTimeout,
    Workflow,
    WorkflowEngine,
)
from spanloom.testing.servers import redis_server

SLOTS = 16  # tasks sleep, so many of them fit into one worker process
TASK_TYPE = "wfcommons.task"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

registry = NodeRegistry()
engine = WorkflowEngine(registry, store=os.environ.get("SPANLOOM_STORE_URL", "sqlite:///wfcommons.db"))


class ReplayFailed(Exception):
    """Say what went wrong with a replay itself."""


# ---- running it ----


def to_workflow(instance: Instance, scale: float) -> Workflow:
    """Return the workflow: a node per task, whose config says what it replays and what must reach it."""
    expected = instance.lineages()
    nodes = [
        Node(
            id=task.node_id,
            type=TASK_TYPE,
            config={
                "task": task.id,
                "seconds": (task.runtime or 0.0) * scale,
                "parents": len(task.parents),
                "reads": task.reads,
                "writes": task.writes,
                "lineage": expected[task.id],
            },
            inputs=[instance.tasks[parent].node_id for parent in task.parents],
        )
        for task in instance.tasks.values()
    ]
    printable = "".join(letter if letter.isprintable() else "?" for letter in instance.name)[:200]
    return Workflow(id=f"wfcommons.{instance.slug}", name=printable, nodes=nodes)


@registry.node(TASK_TYPE)
async def replay(ctx: NodeContext) -> dict[str, Any]:
    """Check that all parents' data came, take as long as the task took, and pass on which files it wrote."""
    task, came = ctx.config["task"], ctx.results
    if len(came) != ctx.config["parents"]:
        raise ReplayFailed(f"task {task!r} has {ctx.config['parents']} parents and got the data of {sorted(came)}")
    files = {name for data in came.values() for name in data["files"]}
    if missing := [name for name in ctx.config["reads"] if name not in files]:
        raise ReplayFailed(f"task {task!r} did not get the files {missing} that its parents wrote")
    found = lineage(task, ctx.config["writes"], [data["lineage"] for data in came.values()])
    if found != ctx.config["lineage"]:
        raise ReplayFailed(f"task {task!r} got other data of its parents {sorted(came)} than they must have written")
    await asyncio.sleep(ctx.config["seconds"])
    return {"task": task, "files": ctx.config["writes"], "parents": len(came), "lineage": found}


@contextmanager
def worker_processes(
    engine: WorkflowEngine, store_url: str, redis_url: str, processes: int, log_path: Path
) -> Generator[subprocess.Popen[bytes] | None]:
    """Run `spanloom worker wfcommons:engine` while the block lasts; over memory, threads of this process instead."""
    if store_url.startswith("memory:"):
        with engine.start_workers(processes, concurrency=SLOTS):
            yield None
        return
    before = {worker.worker_id for worker in engine.store.list_workers()}
    command = [sys.executable, "-m", "spanloom.cli", "worker", "wfcommons:engine"]
    options = ["--processes", str(processes), "--concurrency", str(SLOTS), "--grace", "2s"]
    with log_path.open("wb") as log:
        workers = subprocess.Popen(
            [*command, *options],
            cwd=Path(__file__).parent,
            env={**os.environ, "SPANLOOM_STORE_URL": store_url, "SPANLOOM_REDIS_URL": redis_url},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches this process, which then tells the workers
        )
        try:
            while len({worker.worker_id for worker in engine.store.list_workers()} - before) < processes:
                _still_there(workers, log_path)
                time.sleep(0.05)
            yield workers
        finally:
            workers.terminate()
            workers.wait()


def _still_there(workers: subprocess.Popen[bytes] | None, log_path: Path) -> None:
    if workers is not None and workers.poll() is not None:
        log = log_path.read_text(errors="replace").splitlines()[-5:]
        raise ReplayFailed(
            "\n".join([f"the workers ended with exit code {workers.returncode}; their last words:", *log])
        )


def run(
    engine: WorkflowEngine, workflow: Workflow, workers: subprocess.Popen[bytes] | None, log_path: Path
) -> Execution:
    """Run the workflow once and return its ended execution. Raises ReplayFailed if the workers are gone."""
    handle = engine.start(workflow)
    while True:
        try:
            return engine.wait(handle.id, timeout=1)
        except WaitTimeout:
            _still_there(workers, log_path)


# ---- what came of it ----


@dataclass
class Findings:
    """What the store says of a replay, held against the file."""

    makespan: float = 0.0  # from the first start to the last end, in seconds
    unfinished: list[str] = field(default_factory=list)
    out_of_order: list[str] = field(default_factory=list)  # edges whose child began before its parent had ended
    without_data: list[str] = field(default_factory=list)  # tasks that the data of some ancestor did not reach

    @property
    def good(self) -> bool:
        return not (self.unfinished or self.out_of_order or self.without_data)


def findings(instance: Instance, runs: Iterable[NodeRun]) -> Findings:
    """Hold the node runs of an execution against the instance."""
    completed = {run.node_id: run for run in runs if run.status is NodeStatus.COMPLETED}
    begun = [run.started_at for run in completed.values() if run.started_at]
    ended = [run.ended_at for run in completed.values() if run.ended_at]
    found = Findings((max(ended) - min(begun)).total_seconds() if begun and ended else 0.0)
    expected = instance.lineages()
    for task in instance.tasks.values():
        run = completed.get(task.node_id)
        if run is None:
            found.unfinished.append(shown(task.id))
        elif (run.data["task"], run.data["lineage"]) != (task.id, expected[task.id]):
            found.without_data.append(shown(task.id))
    for parent, child in instance.edges:
        before, after = completed.get(parent.node_id), completed.get(child.node_id)
        if after is None:
            continue
        if before is None or not before.ended_at or not after.started_at or before.ended_at > after.started_at:
            found.out_of_order.append(f"{shown(parent.id)} → {shown(child.id)}")
    return found


def report(instance: Instance, found: Findings, execution: Execution, scale: float) -> list[str]:
    """Return the lines that say what was run and what was found."""
    tasks, edges = instance.tasks.values(), len(instance.edges)
    recorded = [task.runtime for task in tasks if task.runtime is not None]
    unknown = len(tasks) - len(recorded)
    lines = [
        f"{shown(instance.name)}: {len(tasks):,} tasks, {edges:,} edges, the widest join has "
        f"{max(len(task.parents) for task in tasks):,} parents",
        f"recorded: {sum(recorded):,.1f} s of work, {instance.critical_path():,.1f} s on the critical path"
        + (f"; {unknown:,} tasks have no runtime and take no time" if unknown else ""),
        f"replayed at a scale of {scale:g}: {execution.status} with a makespan of {found.makespan:,.3f} s, "
        f"{instance.critical_path(scale):,.3f} s of it on the critical path",
    ]
    if execution.error is not None:
        lines.append(f"the execution's error: {execution.error.get('message')}")
    for wrong, good, bad in (
        (found.unfinished, f"each of the {len(tasks):,} tasks completed", "not completed"),
        (found.out_of_order, f"order of all {edges:,} edges respected", "started before its parent had ended"),
        (found.without_data, "data of every parent received", "without its parents' data"),
    ):
        lines.append(f"{bad}: {few(wrong)}" if wrong else good)
    return lines


# ---- the command ----


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay a file and return the process's exit code: 0 if all went as it must."""
    options = _parser().parse_args(arguments)
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        instance = read_instance(options.file)
        execution, found = _replay(instance, options)
    except InstanceInvalid as error:
        _say(f"{options.file} can't be replayed: {error}", sys.stderr)
        return 2
    except (SpanloomError, ReplayFailed) as error:
        _say(f"the replay failed: {error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        _say("stopped", sys.stderr)
        return 130
    for line in report(instance, found, execution, options.scale):
        _say(line, sys.stdout)
    return 0 if execution.status is ExecutionStatus.COMPLETED and found.good else 1


def _replay(instance: Instance, options: argparse.Namespace) -> tuple[Execution, Findings]:
    workflow = to_workflow(instance, options.scale)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spanloom-wfcommons-")))
        log_path = directory / "workers.log"
        store_url = options.store or f"sqlite:///{directory}/wfcommons.db"
        redis_url = options.redis or stack.enter_context(redis_server()).url
        with WorkflowEngine(registry, store_url, redis_url) as own:
            with worker_processes(own, store_url, redis_url, options.processes, log_path) as workers:
                execution = run(own, workflow, workers, log_path)
            return execution, findings(instance, own.store.get_node_results(execution.id))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Replay a WfCommons instance (WfFormat 1.5) on Spanloom.")
    parser.add_argument("file", type=Path, metavar="FILE", help="the instance, a JSON file")
    parser.add_argument(
        "--scale", type=_scale, default=0.001, metavar="X", help="seconds slept per second recorded (default: 0.001)"
    )
    parser.add_argument(
        "--store", metavar="URL", help="memory://, sqlite:///… or postgresql://… (default: a new SQLite)"
    )
    parser.add_argument("--redis", metavar="URL", help="the Redis to use (default: a new one)")
    parser.add_argument(
        "--processes", type=_processes, default=2, metavar="N", help="how many worker processes (default: 2)"
    )
    return parser


def _scale(text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not (math.isfinite(scale) and scale >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no scale; give a number from 0")
    return scale


def _processes(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 256):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes; give 1 to 256")
    return int(text)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # one is enough: nothing may interrupt the cleaning up
    raise KeyboardInterrupt


def _say(line: str, stream: Any) -> None:
    encoding = stream.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream)


if __name__ == "__main__":
    sys.exit(main())
