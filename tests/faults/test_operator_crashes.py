"""Behaviour 26 for operators: one who is killed before and after each step does it again, and it is done once."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from faults.crash_plays import Plays
from faults.crash_system import PLAY_SECONDS, Place, Process
from faults.crash_workflows import WORKFLOWS, registry
from faults.port_steps import OPERATED
from spanloom.engine import ExecutionStatus, NodeStatus, Settings, WorkflowEngine
from spanloom.engine.store.models import Event
from spanloom.engine.store.requests import Outcome
from spanloom.stores import open_store
from spanloom.testing.crash_points import AT, EXIT_CODE, FOLDER, crashes
from spanloom.testing.driver import StoreDriver

#: With the start of a replay, and what is pushed for it.
STEPS = sorted([*(f"operator.store.{name}" for name in OPERATED | {"create_executions"}), "operator.queue.push"])
POINTS = [f"{step}.{side}" for step in STEPS for side in ("after", "before")]


def test_an_operator_who_is_killed_at_each_step_does_it_again_and_it_is_done_once(
    plays: Plays, monkeypatch: pytest.MonkeyPatch
) -> None:
    with plays.place() as place:
        monkeypatch.setenv(FOLDER, str(place.folder))  # for handlers that run here
        ids = _begin(place)
        codes = _operate(plays, place)

        assert codes == [EXIT_CODE] * len(POINTS) + [0]
        assert sorted(crashes(place.folder)) == sorted(POINTS)
        _look(place, ids, (place.folder / "replayed").read_text())


def _begin(place: Place) -> dict[str, str]:
    """Make what is to be operated on: executions that wait, one that completed, and one that was cancelled."""
    store = open_store(place.store_url, namespace="spanloom")
    for workflow in WORKFLOWS:
        store.save_workflow(workflow)
    driver = StoreDriver(store)
    ids = {name: driver.start("chain", 1) for name in ("source", "purged", "failed", "by hand")}
    for node in ("n1", "n2", "n3", "n4", "n5"):
        driver.run(ids["source"], node, Outcome.COMPLETED, data=1)
    driver.cancel(ids["purged"])
    store.unregister_worker(driver.worker_id)
    store.close()
    (place.folder / "ids").write_text(json.dumps(ids))
    return ids


def _operate(plays: Plays, place: Place) -> list[int]:
    """Run the operator again and again until it comes to its end; return the exit codes."""
    environment = {
        "SPANLOOM_STORE_URL": place.store_url,
        "SPANLOOM_REDIS_URL": place.redis_url,
        "SPANLOOM_NAMESPACE": place.namespace,
        FOLDER: str(place.folder),
        AT: "\n".join(f"{point} 1 1" for point in POINTS),
    }
    codes: list[int] = []
    while not codes or (codes[-1] and len(codes) <= len(POINTS)):
        operator = Process(plays.fork_server, "operate", environment, place.folder)
        codes.append(operator.wait(PLAY_SECONDS))
        assert codes[-1] in (0, EXIT_CODE), operator.log
    return codes


def _look(place: Place, ids: dict[str, str], replayed: str) -> None:
    settings = Settings(namespace=place.namespace)
    store = open_store(place.store_url, namespace="spanloom")
    with WorkflowEngine(registry, store, place.redis_url, settings=settings) as engine:
        # what was failed by hand has failed once, is acknowledged, and has its lines
        failed = store.get_execution(ids["failed"])
        assert failed is not None
        assert (failed.status, (failed.error or {}).get("message")) == (ExecutionStatus.FAILED, "enough")
        assert failed.acknowledged_at is not None
        kinds = _kinds(store.get_events(ids["failed"]))
        assert (kinds["execution.failed", None], kinds["execution.acknowledged", None]) == (1, 1)
        (span,) = store.get_trace(ids["failed"])
        assert (span.end_ns, span.status) == (2, "ok")
        assert len(store.get_logs(ids["failed"])) >= 1  # each run of the operator wrote one: they have no key
        # what was cancelled is gone, and nothing else
        assert {one.id for one in store.list_executions().items} == {*ids.values(), replayed} - {ids["purged"]}
        assert store.get_node_results(ids["purged"]) == store.get_events(ids["purged"]) == []
        assert [one.active for one in store.list_workflows().items if one.id == "chain"] == [True]
        # what goes on after the operator ends: nobody has lost a job, nobody runs one twice
        with engine.start_workers(1, sweep_seconds=0.1, lost_job_after_seconds=0.2):
            assert engine.wait(ids["by hand"], timeout=PLAY_SECONDS).output == 14
            assert engine.wait(replayed, timeout=PLAY_SECONDS).output == 6
        for execution_id in (ids["by hand"], replayed):
            kinds = _kinds(store.get_events(execution_id))
            assert {kinds["node.completed", f"n{number}"] for number in range(1, 6)} == {1}
            assert (kinds["execution.created", None], kinds["execution.completed", None]) == (1, 1)
        (by_hand,) = store.get_node_results(ids["by hand"], ["n1"])
        assert (by_hand.status, by_hand.data, by_hand.worker_id) == (NodeStatus.COMPLETED, 10, None)
        source = store.get_execution(replayed)
        assert source is not None
        assert source.replay_of == ids["source"]


def _kinds(events: list[Event]) -> Counter[tuple[str, str | None]]:
    return Counter((event.kind, event.node_id) for event in events)
