"""Instances in WfFormat made up for tests, in the shapes of recorded ones and in odder ones."""

from __future__ import annotations

import random
from typing import Any

Parents = dict[str, list[str]]


def written(parents: Parents, runtimes: dict[str, float] | None = None, *, told_by: str = "both") -> dict[str, Any]:
    """Return the content of a file; edges are told by the child (`parents`), by the parent (`children`), or both."""
    children: Parents = {task: [] for task in parents}
    for task, found in parents.items():
        for parent in found:
            children[parent].append(task)
    by_child, by_parent = told_by in ("both", "child"), told_by in ("both", "parent")
    specified = [
        {
            "name": task,
            "id": task,
            **({"parents": found} if by_child else {}),
            **({"children": children[task]} if by_parent else {}),
            "inputFiles": ["raw.txt", *(f"{parent}.out" for parent in found)],
            "outputFiles": [f"{task}.out"],
        }
        for task, found in parents.items()
    ]
    executed = [{"id": task, "runtimeInSeconds": seconds} for task, seconds in (runtimes or {}).items()]
    return {
        "name": "generated",
        "schemaVersion": "1.5",
        "workflow": {"specification": {"tasks": specified, "files": []}, "execution": {"tasks": executed}},
    }


def fork_join(width: int) -> Parents:
    forked = [f"task_{number}" for number in range(width)]
    return {"fork": [], **{task: ["fork"] for task in forked}, "join": forked}


def funnels(groups: int, width: int) -> Parents:
    """Return several joins whose results are joined again."""
    found: Parents = {}
    for group in range(groups):
        leaves = [f"read_{group}_{number}" for number in range(width)]
        found |= {leaf: [] for leaf in leaves} | {f"merge_{group}": leaves}
    return found | {"sift": [f"merge_{group}" for group in range(groups)]}


def layers(count: int, width: int, seed: int) -> Parents:
    """Return a graph in which each task has up to five parents in any earlier layers, or none."""
    chance = random.Random(seed)
    found: Parents = {}
    for layer in range(count):
        before = list(found)
        for number in range(width):
            parents = chance.sample(before, min(chance.randrange(6), len(before)))
            found[f"layer {layer}/task {number}"] = parents
    return found


def difficult() -> dict[str, Any]:
    """Return an instance of 1,252 tasks with all that files bring: long and odd ids, wide joins, isolated tasks."""
    first = [f"scatter.{number:04d}/" + "long" * 100 for number in range(500)]
    second = [f"räkna {number} 🧬" for number in range(500)]
    isolated = [f"alone:{number}" for number in range(250)]
    parents: Parents = {
        "split": [],
        **{task: ["split"] for task in first},
        "x" * 5_000: first,
        **{task: ["x" * 5_000, first[number]] for number, task in enumerate(second)},
        **{task: [] for task in isolated},
    }
    return written(parents, dict.fromkeys(first, 0.5), told_by="parent")
