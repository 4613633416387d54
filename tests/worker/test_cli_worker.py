"""`spanloom worker`: what it is told reaches the worker, and each of its processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ByteSize

from spanloom.cli.exit_codes import DONE, MISTAKE, run
from spanloom.engine import NodeRegistry, WorkflowEngine
from spanloom.worker import Listen, WorkerOptions
from spanloom.worker.process.cpus import usable_cpus
from spanloom.worker.process.supervised import SupervisedProcess

pytestmark = pytest.mark.usefixtures("clean_environment")

TOLD = [
    "--concurrency", "2", "--queues", "high,default", "--grace", "5s", "--lease", "3s", "--max-recovery-attempts", "5",
    "--isolation", "2m", "--stall", "0", "--log-level", "warning", "--capture-output", "--burst",
    "--max-nodes", "500", "--max-memory", "1.5GiB",
]  # fmt: skip


@pytest.fixture
def listening() -> list[Listen | None]:
    """Where each worker that was started serves its endpoints."""
    return []


@pytest.fixture
def served(
    monkeypatch: pytest.MonkeyPatch, sqlite_url: str, redis_url: str, listening: list[Listen | None]
) -> list[WorkerOptions]:
    """With which options a worker was started."""
    found: list[WorkerOptions] = []

    def serve(_engine: WorkflowEngine, options: WorkerOptions, *, listen: Listen | None, app: str) -> int:
        assert app == "shop:engine"
        found.append(options)
        listening.append(listen)
        return DONE

    engine = WorkflowEngine(NodeRegistry(), sqlite_url, redis_url)
    monkeypatch.setattr("spanloom.cli.commands.worker.load_engine", lambda _name: engine)
    monkeypatch.setattr("spanloom.cli.commands.worker.serve", serve)
    return found


@pytest.fixture
def supervised(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, WorkerOptions]]:
    """How many processes a supervisor was to start, and with which options."""
    found: list[tuple[int, WorkerOptions]] = []

    def become(_app: str, processes: int, options: WorkerOptions, **_: object) -> int:
        found.append((processes, options))
        return DONE

    monkeypatch.setattr("spanloom.cli.commands.worker.become_supervisor", become)
    return found


def test_what_was_told_is_what_it_works_by(served: list[WorkerOptions]) -> None:
    assert run(["worker", "shop:engine", *TOLD]) == DONE
    assert served == [
        WorkerOptions(
            concurrency=2,
            queues=("high", "default"),
            grace_seconds=5,
            lease_seconds=3,
            max_recovery_attempts=5,
            isolation_seconds=120,
            stall_seconds=0,
            log_level="warning",
            capture_output=True,
            burst=True,
            max_nodes=500,
            max_memory=ByteSize(3 * 2**29),
        )
    ]


@pytest.mark.parametrize(("cpus", "processes"), [(1, 1), (3, 3), (64, 4)])
def test_without_being_told_it_has_the_options_own_defaults_and_a_process_for_each_cpu_up_to_four(
    served: list[WorkerOptions],
    supervised: list[tuple[int, WorkerOptions]],
    monkeypatch: pytest.MonkeyPatch,
    cpus: int,
    processes: int,
) -> None:
    monkeypatch.setattr("spanloom.cli.commands.worker.usable_cpus", lambda: cpus)
    assert run(["worker", "shop:engine"]) == DONE
    assert (served, supervised) == ([], [(processes, WorkerOptions())])


def test_a_worker_with_a_name_is_one_process(
    supervised: list[tuple[int, WorkerOptions]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spanloom.cli.commands.worker.usable_cpus", lambda: 8)
    assert run(["worker", "shop:engine", "--name", "one"]) == DONE
    assert supervised == [(1, WorkerOptions(name="one"))]


@pytest.mark.parametrize(
    ("limits", "cpus"),
    [
        ({"a/b": "max 100000", "a": "max 100000"}, None),
        ({"a/b": "250000 100000"}, 2),
        ({"a/b": "50000 100000"}, 1),
        ({"a/b": "max 100000", "a": "100000 100000"}, 1),
        ({}, None),
    ],
)
def test_the_limits_of_a_container_and_of_what_it_is_in_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, str], cpus: int | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2, 3, 4}, raising=False)
    for group, limit in limits.items():
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / group / "cpu.max").write_text(f"{limit}\n")
    own = tmp_path / "own"
    own.write_text("1:cpuset:/\n0::/a/b\n")

    assert usable_cpus(tmp_path, own) == (cpus or 4)
    assert usable_cpus(tmp_path, tmp_path / "missing") == 4


def test_each_of_several_processes_works_by_the_same_options(
    served: list[WorkerOptions], listening: list[Listen | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, dict[str, str]]] = []

    def supervise(app: str, processes: int, options: WorkerOptions, *, listen: Listen | None, **_: str) -> int:
        started.extend([(app, SupervisedProcess(options=options, listen=listen).environment())] * processes)
        return DONE

    monkeypatch.setattr("spanloom.cli.commands.worker.become_supervisor", supervise)
    monkeypatch.setattr("spanloom.cli.commands.worker.check_free", lambda _listen, _processes: None)
    told = [*TOLD, "--metrics-port", "9470"]
    assert run(["worker", "shop:engine", "--processes", "2", *told]) == DONE
    for app, environment in started:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert run(["worker", app]) == DONE
        assert environment.keys().isdisjoint(os.environ)  # what a handler starts is another worker
    assert run(["worker", "shop:engine", *told]) == DONE
    assert len(served) == 3
    assert served[0] == served[1] == served[2]
    assert listening[0] == listening[1] == listening[2] is not None


def test_every_field_of_the_options_has_an_option_and_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["worker", "--help"]) == DONE
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in WorkerOptions.model_fields.items():
        option = "--" + name.removesuffix("_seconds").replace("_", "-")
        assert option in shown, name
        assert field.description, name
        assert " ".join(field.description.split()) in shown, name


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--queues", "high,,low"], "is no list of queues"),
        (["--lease", "soon"], "is no duration"),
        (["--lease", "0.1s"], "lease_seconds"),
        (["--log-level", "loud"], "loud"),
        (["--concurrency", "many"], "many"),
        (["--name", "a b"], "name"),
        (["--name", "one", "--processes", "2"], "leave it out with --processes"),
        (["--max-nodes", "0"], "max_nodes"),
        (["--max-nodes", "many"], "many"),
        (["--max-memory", "0"], "max_memory"),
        (["--max-memory", "much"], "'much' is no size; write bytes, or 500MB"),
        (["--max-memory", "-1MB"], "is no size"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_with_a_sentence(
    served: list[WorkerOptions], capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert run(["worker", "shop:engine", *arguments]) == MISTAKE
    assert sentence in capsys.readouterr().err
    assert served == []


def test_a_number_of_recovery_attempts_that_makes_no_sense_is_refused(
    served: list[WorkerOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["worker", "shop:engine", "--max-recovery-attempts", "0"]) == MISTAKE
    assert "max_recovery_attempts" in capsys.readouterr().err
    assert served == []


def test_it_serves_its_endpoints_where_it_is_told(
    served: list[WorkerOptions], listening: list[Listen | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = ["worker", "shop:engine", "--stall", "0"]
    assert run(alone) == DONE
    assert run([*alone, "--metrics-port", "9464"]) == DONE
    monkeypatch.setenv("SPANLOOM_METRICS_PORT", "9470")
    monkeypatch.setenv("SPANLOOM_METRICS_HOST", "0.0.0.0")
    assert run(alone) == DONE
    assert run([*alone, "--metrics-port", "9471", "--metrics-host", "::1"]) == DONE

    assert listening == [None, Listen(9464, "127.0.0.1"), Listen(9470, "0.0.0.0"), Listen(9471, "::1")]


def test_ports_that_there_are_not_enough_of_are_refused(
    served: list[WorkerOptions], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["worker", "shop:engine", "--metrics-port", "65535", "--processes", "2"]) == MISTAKE
    assert "at most 65534" in capsys.readouterr().err
