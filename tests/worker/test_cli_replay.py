"""`spanloom replay`: a new execution with the data, and as far as one likes the results, of an earlier one."""

from __future__ import annotations

import json

import pytest

from spanloom.cli.exit_codes import DONE, MISTAKE
from spanloom.engine import ExecutionStore
from spanloom.engine.store.models import Execution
from support.cli import NEWER, OLDER, Control, Invoke

pytestmark = pytest.mark.usefixtures("clean_environment", "store")


def replayed(control: Control, store: ExecutionStore, *arguments: str) -> Execution:
    """Replay OLDER and return the new execution, whose id is all that was printed."""
    code, ((execution_id,),), complaints = control("replay", OLDER, *arguments)
    assert (code, complaints) == (DONE, "")
    found = store.get_execution(execution_id)
    assert found is not None
    assert found.id != OLDER
    return found


def node_statuses(store: ExecutionStore, execution: Execution) -> dict[str, str]:
    return {run.node_id: run.status.value for run in store.get_node_results(execution.id)}


def test_it_starts_from_the_beginning_with_the_same_data_and_version(control: Control, store: ExecutionStore) -> None:
    again = replayed(control, store)
    assert (again.input, again.version, again.metadata) == ({"id": 7}, 1, {"customer": "17"})
    assert again.replay_of == OLDER
    assert node_statuses(store, again) == {"n1": "queued"}


@pytest.mark.parametrize("version", ["latest", "2"])
def test_another_version_may_be_asked_for(control: Control, store: ExecutionStore, version: str) -> None:
    assert replayed(control, store, "--version", version).version == 2


def test_from_a_node_on_the_other_results_are_taken_over(control: Control, store: ExecutionStore) -> None:
    again = replayed(control, store, "--version", "latest", "--from", "n2", "--from", "n3")
    assert node_statuses(store, again) == {"n1": "completed", "n2": "queued"}
    assert store.get_node_results(again.id, ["n1"])[0].data == "priced"


def test_the_same_key_replays_once(control: Control, store: ExecutionStore) -> None:
    assert replayed(control, store, "--key", "k").id == replayed(control, store, "--key", "k").id
    assert replayed(control, store).id != replayed(control, store).id


def test_json_is_the_new_execution(control: Control, store: ExecutionStore) -> None:
    code, ((line,),), _ = control("replay", OLDER[-8:], "--json")
    document = json.loads(line)
    assert (code, document["replay_of"], document["status"]) == (DONE, OLDER, "running")
    assert set(document) == set(Execution.model_fields)


def test_show_tells_what_it_replays(control: Control, store: ExecutionStore, invoke: Invoke) -> None:
    again = replayed(control, store)
    assert f"replay_of\t{OLDER}\n" in invoke("show", again.id)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([OLDER, "--from", "n9"], "no node 'n9' to replay from"),
        ([OLDER, "--version", "9"], "workflow 'orders' has no version 9"),
        ([OLDER, "--version", "newest"], "'newest' is no version; write its number, or latest"),
        ([OLDER, "--version", "0"], "'0' is no version"),
        ([OLDER.replace("1", "9")], "no execution"),
    ],
)
def test_what_can_not_be_replayed_is_told_and_starts_nothing(
    control: Control, store: ExecutionStore, arguments: list[str], said: str
) -> None:
    code, lines, complaints = control("replay", *arguments)
    assert (code, lines) == (MISTAKE, [])
    assert said in complaints
    assert [one.id for one in store.list_executions().items] == [NEWER, OLDER]


class TestInBulk:
    """Filters in the place of an id."""

    def test_all_that_ended_and_match_are_replayed(self, control: Control, store: ExecutionStore) -> None:
        ended = [one.id for one in store.list_executions().items if one.status.ended and not one.parent_execution_id]
        assert OLDER in ended
        code, lines, complaints = control("replay", "--all", "--yes")
        assert (code, complaints) == (DONE, "")
        assert {source for source, _ in lines} == set(ended)
        for source, started in lines:
            found = store.get_execution(started)
            assert found is not None
            assert found.replay_of == source

    def test_a_dry_run_starts_nothing(self, control: Control, store: ExecutionStore) -> None:
        count = store.get_execution_count()
        code, lines, _ = control("replay", "--all", "--limit", "1", "--dry-run")
        assert (code, len(lines), len(lines[0])) == (DONE, 1, 1)
        assert store.get_execution_count() == count

    @pytest.mark.parametrize(
        "arguments", [[], ["--all"], [OLDER, "--all"], [OLDER, "--dry-run"], ["--all", "--yes", "--key", "k"]]
    )
    def test_what_does_not_go_together_is_told(self, control: Control, arguments: list[str]) -> None:
        code, lines, complaints = control("replay", *arguments)
        assert (code, lines) == (MISTAKE, [])
        assert complaints.startswith("spanloom: ")
