"""RecordResult scientific workflows on real workers: every edge respected, the data of every parent received.

The recorded instances are not part of the project: SPANLOOM_WFCOMMONS_DIR says where they are. Where they are missing,
generated ones of their shapes are run in their place; generated ones of more than a thousand tasks are run anyway.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from spanloom.engine import Execution, ExecutionStatus, NodeContext, NodeRun, WorkflowEngine
from support.postgres import copied_database

PROJECT = Path(__file__).parents[2]
sys.path.append(str(PROJECT / "examples"))  # where its users run it

import wfcommons  # noqa: E402
import wfformat  # noqa: E402
from wfformat import Instance, InstanceInvalid  # noqa: E402

from e2e.support.wf_instances import difficult, fork_join, funnels, layers, written  # noqa: E402

RECORDINGS = Path(os.environ.get("SPANLOOM_WFCOMMONS_DIR", PROJECT.parent / "shared" / "data" / "wfcommons"))
SCALE = 0.0002


Replay = Callable[[Instance], tuple[Execution, wfcommons.Findings, list[NodeRun]]]


# ---- instances ----

_RECORDED = sorted(RECORDINGS.glob("*.json"))
_STAND_INS = {
    "fork-join": fork_join(8),
    "funnels": funnels(5, 10),
    "wide-join": fork_join(100),
    "layers": layers(8, 6, 1),
}


@pytest.fixture(params=[path.stem for path in _RECORDED] or list(_STAND_INS))
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> Instance:
    """Each recorded instance, or a stand-in."""
    path = RECORDINGS / f"{request.param}.json"
    if not _RECORDED:
        path = tmp_path / "instance.json"
        parents = _STAND_INS[request.param]
        path.write_text(json.dumps(written(parents, dict.fromkeys(parents, 12.5))), encoding="utf-8")
    return wfformat.read_instance(path)


# ---- replaying ----


def _store_url(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    if kind == "memory":
        yield "memory://"
    elif kind == "sqlite":
        yield f"sqlite:///{folder}/spanloom.db"
    else:
        server = request.getfixturevalue("postgres_server")
        with copied_database(server, request.getfixturevalue("_postgres_template")) as name:
            yield server.database_url(name)


@pytest.fixture(scope="module", params=["memory", "sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def replay(
    request: pytest.FixtureRequest, own_redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replay]:
    """What runs an instance on the example's own workers, over each store in turn."""
    folder = tmp_path_factory.mktemp("wfcommons")
    with redis.Redis.from_url(own_redis_url) as client:
        client.flushall()
    for store_url in _store_url(request.param, request, folder):
        with (
            WorkflowEngine(wfcommons.registry, store_url, own_redis_url) as engine,
            wfcommons.worker_processes(engine, store_url, own_redis_url, 2, folder / "workers.log") as workers,
        ):

            def run(instance: Instance) -> tuple[Execution, wfcommons.Findings, list[NodeRun]]:
                workflow = wfcommons.to_workflow(instance, SCALE)
                execution = wfcommons.run(engine, workflow, workers, folder / "workers.log")
                runs = engine.store.get_node_results(execution.id)
                return execution, wfcommons.findings(instance, runs), runs

            yield run


def assert_went_well(instance: Instance, execution: Execution, found: wfcommons.Findings, runs: list[NodeRun]) -> None:
    assert execution.status is ExecutionStatus.COMPLETED, execution.error
    assert (found.unfinished, found.out_of_order, found.without_data) == ([], [], [])
    assert sorted(run.data["task"] for run in runs) == sorted(instance.tasks)
    assert {run.data["task"]: run.data["parents"] for run in runs} == {
        task.id: len(task.parents) for task in instance.tasks.values()
    }
    assert found.makespan >= instance.critical_path(SCALE)


@pytest.mark.one_in(2)
def test_a_recorded_instance_keeps_the_order_and_the_data_of_every_edge(replay: Replay, recorded: Instance) -> None:
    assert_went_well(recorded, *replay(recorded))


def test_a_thousand_tasks_with_odd_ids_and_wide_joins_keep_order_and_data(replay: Replay) -> None:
    instance = wfformat.instance_from(difficult(), "difficult")
    assert len(instance.tasks) == 1_252
    assert len(instance.edges) == 500 + 500 + 1_000

    assert_went_well(instance, *replay(instance))


@pytest.mark.torture  # small ones of their shape are among the stand-ins
def test_a_thousand_tasks_in_random_layers_keep_order_and_data(replay: Replay) -> None:
    parents = layers(30, 40, seed=7)
    chance = random.Random(8)
    runtimes = {task: chance.uniform(0, 20) for task in parents}
    instance = wfformat.instance_from(written(parents, runtimes, told_by="child"), "layers")

    assert_went_well(instance, *replay(instance))


# ---- what a replay checks ----


def _handled(instance: Instance, task_id: str, came: dict[str, Any]) -> Any:
    (node,) = (node for node in wfcommons.to_workflow(instance, 0.0).nodes if node.config["task"] == task_id)
    ctx = NodeContext(
        execution_id="x",
        workflow_id="x",
        version=1,
        node_id=node.id,
        runtime=None,  # type: ignore[arg-type]
        config=dict(node.config),
        results_json={parent: json.dumps(data) for parent, data in came.items()},
    )
    return asyncio.run(wfcommons.replay(ctx))


def test_a_task_fails_unless_the_data_of_every_parent_came() -> None:
    instance = wfformat.instance_from(written({"a": [], "b": [], "c": ["a", "b"]}), "x")
    a, b = _handled(instance, "a", {}), _handled(instance, "b", {})

    assert _handled(instance, "c", {"a": a, "b": b})["parents"] == 2
    with pytest.raises(wfcommons.ReplayFailed, match=r"'c' has 2 parents and got the data of \['a'\]"):
        _handled(instance, "c", {"a": a})
    with pytest.raises(wfcommons.ReplayFailed, match=r"'c' did not get the files \['b.out'\]"):
        _handled(instance, "c", {"a": a, "b": b | {"files": []}})
    with pytest.raises(wfcommons.ReplayFailed, match="'c' got other data of its parents"):
        _handled(instance, "c", {"a": a, "b": b | {"lineage": a["lineage"]}})


def test_what_went_wrong_is_found_in_the_node_runs(replay: Replay) -> None:
    instance = wfformat.instance_from(written({"a": [], "b": ["a"], "c": ["b"]}), "x")
    _, good, runs = replay(instance)
    a, b, c = sorted(runs, key=lambda run: run.node_id)
    assert good.good
    assert a.started_at is not None

    early = b.model_copy(update={"started_at": a.started_at - timedelta(microseconds=1)})
    assert wfcommons.findings(instance, [a, early, c]).out_of_order == ["'a' → 'b'"]
    assert wfcommons.findings(instance, [a, b]).unfinished == ["'c'"]
    assert wfcommons.findings(instance, [b, c]).out_of_order == ["'a' → 'b'"]
    blind = c.model_copy(update={"data": {**c.data, "lineage": b.data["lineage"]}})
    assert wfcommons.findings(instance, [a, b, blind]).without_data == ["'c'"]
    assert not wfcommons.findings(instance, [a, b, blind]).good


# ---- the command ----


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SPANLOOM_")}
    return subprocess.run(
        [sys.executable, str(PROJECT / "examples" / "wfcommons.py"), *arguments],
        env=clean,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.services
def test_the_command_brings_all_it_needs_and_reports(tmp_path: Path) -> None:
    path = tmp_path / "instance.json"
    path.write_text(json.dumps(written(fork_join(20), {"fork": 10.0, "join": 5.0})), encoding="utf-8")

    done = _command(str(path), "--scale", "0.01")

    assert done.returncode == 0, done.stderr
    first, recorded, replayed, *rest = done.stdout.splitlines()
    assert first == "'generated': 22 tasks, 40 edges, the widest join has 20 parents"
    assert recorded == (
        "recorded: 15.0 s of work, 15.0 s on the critical path; 20 tasks have no runtime and take no time"
    )
    assert replayed.startswith("replayed at a scale of 0.01: completed with a makespan of ")
    assert replayed.endswith("0.150 s of it on the critical path")
    assert rest == [
        "each of the 22 tasks completed",
        "order of all 40 edges respected",
        "data of every parent received",
    ]


def test_the_command_runs_over_memory_on_a_redis_that_is_there(redis_url: str, tmp_path: Path) -> None:
    path = tmp_path / "instance.json"
    path.write_text(json.dumps(written(fork_join(5))), encoding="utf-8")

    done = _command(str(path), "--store", "memory://", "--redis", redis_url)

    assert done.returncode == 0, done.stderr
    assert "order of all 10 edges respected" in done.stdout


def test_the_command_names_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text('{"workflow": ', encoding="utf-8")

    done = _command(str(path))

    assert done.returncode == 2
    assert done.stderr.startswith(f"{path} can't be replayed: it is not JSON: Expecting value")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff\xfe\xfd", b'{"a": 1} x'])
def test_what_is_not_json_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)

    with pytest.raises(InstanceInvalid, match="it is not JSON: "):
        wfformat.read_instance(path)


def test_a_file_that_can_not_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(InstanceInvalid, match="it can't be read: No such file"):
        wfformat.read_instance(tmp_path / "none.json")
    with pytest.raises(InstanceInvalid, match="it can't be read: Is a directory"):
        wfformat.read_instance(tmp_path)


@pytest.mark.parametrize(
    ("option", "value"), [("--scale", "-1"), ("--scale", "nan"), ("--processes", "0"), ("--processes", "two")]
)
def test_an_option_out_of_its_range_is_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        wfcommons.main(["file.json", option, value])

    assert f"argument {option}: {value!r} is no" in capsys.readouterr().err
