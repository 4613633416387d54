"""Reads WfFormat 1.5, in which WfCommons (https://wfcommons.org/format) keeps recorded executions of workflows."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spanloom.engine import Node, Workflow, WorkflowInvalid
from spanloom.engine.workflow.validation import validate

_SHOWN = 5  # of what is wrong
_FITTING = re.compile(r"[A-Za-z0-9_-]{1,200}").fullmatch
_ODD = re.compile(r"[^A-Za-z0-9_-]+")


class InstanceInvalid(Exception):
    """Say what keeps a file from being run."""


class _Part(BaseModel):
    """What is read of a file; what else stands in it is of no interest."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _SpecifiedTask(_Part):
    id: str
    parents: tuple[str, ...] | None = None
    children: tuple[str, ...] | None = None
    input_files: tuple[str, ...] | None = Field(None, alias="inputFiles")
    output_files: tuple[str, ...] | None = Field(None, alias="outputFiles")


class _Specification(_Part):
    tasks: tuple[_SpecifiedTask, ...]


class _ExecutedTask(_Part):
    id: str
    runtime: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] | None = Field(
        None, alias="runtimeInSeconds"
    )


class _Executed(_Part):
    tasks: tuple[_ExecutedTask, ...] | None = None


class _Workflow(_Part):
    specification: _Specification
    execution: _Executed | None = None


class _File(_Part):
    name: str | None = None
    workflow: _Workflow


@dataclass(frozen=True, slots=True)
class Task:
    """One task of an instance. `reads` are the files that a parent wrote for it, `runtime` is None if not recorded."""

    id: str
    node_id: str
    parents: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    runtime: float | None


@dataclass(frozen=True)
class Instance:
    """One recorded workflow: its tasks by id, parents before their children."""

    name: str
    tasks: Mapping[str, Task]

    @property
    def edges(self) -> list[tuple[Task, Task]]:
        return [(self.tasks[parent], task) for task in self.tasks.values() for parent in task.parents]

    def critical_path(self, scale: float = 1.0) -> float:
        """Return how long the longest way through the graph takes, in seconds."""
        ends: dict[str, float] = {}
        for task in self.tasks.values():
            ends[task.id] = max((ends[parent] for parent in task.parents), default=0.0) + (task.runtime or 0.0) * scale
        return max(ends.values())

    @property
    def slug(self) -> str:
        """Its name as far as ids can carry it."""
        return slug(self.name) or "instance"

    def lineages(self) -> dict[str, str]:
        """Return what each task must have computed if the data of every ancestor has reached it."""
        found: dict[str, str] = {}
        for task in self.tasks.values():
            found[task.id] = lineage(task.id, task.writes, [found[parent] for parent in task.parents])
        return found


def slug(text: str) -> str:
    """Return what node and workflow ids can carry of a text, perhaps nothing."""
    return _ODD.sub("-", text)[:150].strip("-")


def lineage(task_id: str, files: Sequence[str], parents: Iterable[str]) -> str:
    """Return the digest of a task, its files and its parents' digests, and so of all that it descends from."""
    return hashlib.sha256(json.dumps([task_id, list(files), sorted(parents)]).encode()).hexdigest()


def read_instance(path: Path) -> Instance:
    """Read a WfFormat 1.5 file. Raises InstanceInvalid with a sentence for each thing that is wrong."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InstanceInvalid(f"it can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InstanceInvalid(f"it is not JSON: {error}") from error
    return instance_from(content, path.stem)


def instance_from(content: Any, name: str) -> Instance:
    """Return the instance that decoded JSON describes; `name` is for one that has none. Raises InstanceInvalid."""
    if not isinstance(content, dict):
        raise InstanceInvalid(f"it holds a JSON {_JSON_NAMES[type(content)]}, not an object with a workflow")
    try:
        file = _File.model_validate(content)
    except ValidationError as error:
        raise InstanceInvalid(few([_sentence(one) for one in error.errors(include_url=False)])) from error
    specified = file.workflow.specification.tasks
    if not specified:
        raise InstanceInvalid("workflow.specification.tasks is empty: there is nothing to run")
    recorded = (file.workflow.execution and file.workflow.execution.tasks) or ()
    runtimes = {task.id: task.runtime for task in recorded if task.runtime is not None}
    tasks = _tasks(specified, runtimes)
    try:
        validate(_bare_workflow(tasks))
    except WorkflowInvalid as error:  # a cycle: all else was seen to
        raise InstanceInvalid(few(error.problems)) from error
    return Instance(file.name or name, _in_order(tasks))


def _bare_workflow(tasks: Mapping[str, Task]) -> Workflow:
    nodes = [
        Node(id=task.node_id, type="task", inputs=[tasks[parent].node_id for parent in task.parents])
        for task in tasks.values()
    ]
    return Workflow(id="instance", nodes=nodes)


_JSON_NAMES = {
    list: "list", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null",
}  # fmt: skip


def _sentence(error: Any) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).removeprefix(".")
    return f"{where} is missing" if error["type"] == "missing" else f"{where}: {error['msg']}"


def few(problems: Sequence[str]) -> str:
    """Return the first of many sentences, and how many more there are."""
    more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return "; ".join([*problems[:_SHOWN], *more])


def shown(text: str) -> str:
    """Return someone's words, quoted and not too long."""
    return repr(text if len(text) <= 120 else f"{text[:100]}…")


def _tasks(specified: Sequence[_SpecifiedTask], runtimes: Mapping[str, float]) -> dict[str, Task]:
    """Join both sides of every edge, which a file may tell from one side only."""
    counts = Counter(task.id for task in specified)
    problems = [f"task id {shown(task_id)} is used {times} times" for task_id, times in counts.items() if times > 1]
    parents: dict[str, dict[str, None]] = {task.id: {} for task in specified}  # ordered sets
    for task in specified:
        for parent in task.parents or ():
            if parent in parents:
                parents[task.id][parent] = None
            else:
                problems.append(f"task {shown(task.id)} has the parent {shown(parent)}, which is no task")
        for child in task.children or ():
            if child in parents:
                parents[child][task.id] = None
            else:
                problems.append(f"task {shown(task.id)} has the child {shown(child)}, which is no task")
    if problems:
        raise InstanceInvalid(few(problems))
    writers: dict[str, set[str]] = {}
    for task in specified:
        for name in task.output_files or ():
            writers.setdefault(name, set()).add(task.id)
    node_ids = node_ids_of(list(parents))
    return {
        task.id: Task(
            id=task.id,
            node_id=node_ids[task.id],
            parents=tuple(parents[task.id]),
            reads=tuple(
                name for name in task.input_files or () if not writers.get(name, set()).isdisjoint(parents[task.id])
            ),
            writes=task.output_files or (),
            runtime=runtimes.get(task.id),
        )
        for task in specified
    }


def node_ids_of(task_ids: Sequence[str]) -> dict[str, str]:
    """Return a node id for each task id: itself where it fits, else what fits of it and a digest; no two are equal."""
    found = {task_id: task_id for task_id in task_ids if _FITTING(task_id)}
    for task_id in task_ids:
        if task_id in found:
            continue
        readable = slug(task_id) or "task"
        digest = hashlib.sha256(task_id.encode()).hexdigest()
        lengths = (length for length in range(12, 65) if f"{readable[: 199 - length]}-{digest[:length]}" not in found)
        length = next(lengths)  # a file would have to be written against SHA-256 to use up all of them
        found[task_id] = f"{readable[: 199 - length]}-{digest[:length]}"
    return found


def _in_order(tasks: Mapping[str, Task]) -> dict[str, Task]:
    """Return the tasks of a graph without cycles, parents before children and otherwise as they were."""
    children: dict[str, list[str]] = {task_id: [] for task_id in tasks}
    for task in tasks.values():
        for parent in task.parents:
            children[parent].append(task.id)
    waits_for = {task.id: len(task.parents) for task in tasks.values()}
    order = [task_id for task_id, count in waits_for.items() if count == 0]
    for task_id in order:  # it grows as it is read
        for child in children[task_id]:
            waits_for[child] -= 1
            if waits_for[child] == 0:
                order.append(child)
    return {task_id: tasks[task_id] for task_id in order}
