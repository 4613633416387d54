"""Conformance: definitions and their versions."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from spanloom.engine.errors import StaleVersion, UnknownWorkflow
from spanloom.engine.store.models import WorkflowVersion
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Claim
from spanloom.engine.workflow.definitions import Input, Node, RetryPolicy, Workflow
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver, request
from spanloom.testing.workflows import chain, diamond, single

__all__ = ["Versions"]


class Versions:
    """`WorkflowVersions`: numbering, equality, history, activation."""

    def test_versions_count_from_one_without_gaps(self, store: ExecutionStore) -> None:
        assert [store.save_workflow(chain(length)) for length in (1, 2, 3)] == [1, 2, 3]

    def test_equal_content_is_the_newest_version_again(self, store: ExecutionStore) -> None:
        store.save_workflow(chain(1))
        assert store.save_workflow(chain(2), change_notes="longer") == 2
        assert store.save_workflow(chain(2), change_notes="the same, said differently", created_by="ann") == 2
        assert len(store.list_workflow_versions("chain").items) == 2

    def test_the_content_of_an_older_version_is_a_new_version(self, store: ExecutionStore) -> None:
        store.save_workflow(chain(1))
        store.save_workflow(chain(2))
        assert store.save_workflow(chain(1)) == 3

    def test_workflows_are_numbered_apart(self, store: ExecutionStore) -> None:
        assert store.save_workflow(chain(2, "a")) == store.save_workflow(chain(2, "b")) == 1

    @pytest.mark.parametrize("newest", [0, 1, 2])
    def test_the_expected_version_lets_a_save_pass(self, store: ExecutionStore, newest: int) -> None:
        for length in range(1, newest + 1):
            store.save_workflow(chain(length))
        assert store.save_workflow(chain(9), expected_version=newest) == newest + 1

    def test_another_than_the_expected_version_refuses_a_save(self, store: ExecutionStore) -> None:
        store.save_workflow(chain(1))
        store.save_workflow(chain(2))
        with pytest.raises(StaleVersion) as refused:
            store.save_workflow(chain(3), expected_version=1)
        assert (refused.value.expected, refused.value.actual) == (1, 2)
        assert isinstance(refused.value.current, WorkflowVersion)
        assert refused.value.current.definition == chain(2)
        assert len(store.list_workflow_versions("chain").items) == 2

    def test_a_version_expected_of_an_unknown_workflow_refuses_a_save(self, store: ExecutionStore) -> None:
        with pytest.raises(StaleVersion) as refused:
            store.save_workflow(chain(1), expected_version=1)
        assert (refused.value.actual, refused.value.current) == (0, None)
        assert store.get_workflow("chain") is None

    def test_a_registered_workflow_is_not_a_first_one(self, store: ExecutionStore) -> None:
        store.save_workflow(chain(1))
        with pytest.raises(StaleVersion):
            store.save_workflow(chain(2), expected_version=0)

    def test_definitions_come_back_as_they_were_saved(self, store: ExecutionStore) -> None:
        rich = Workflow(
            id="rich",
            name="Größe ✓",
            nodes=(
                Node(id="a", type="t", config={"z": 1, "a": [0, False, "", None, {"deep": [1.5]}], "big": 2**80}),
                Node(
                    id="b",
                    type="t",
                    inputs=(Input(node="a", name="x"), Input(node="$input", name="y")),
                    queue="q",
                    timeout=2.5,
                    retry=RetryPolicy(max_attempts=7),
                ),
            ),
        )
        store.save_workflow(rich)
        assert store.get_workflow("rich") == rich
        assert store.get_workflow("rich", 1) == rich

    def test_a_pinned_version_stays_as_it_was(self, store: ExecutionStore) -> None:
        store.save_workflow(chain(1))
        store.save_workflow(chain(2))
        assert store.get_workflow("chain", 1) == chain(1)
        assert store.get_workflow("chain", 2) == store.get_workflow("chain") == chain(2)

    def test_what_is_not_there_is_none(self, store: ExecutionStore) -> None:
        store.save_workflow(chain(1))
        assert store.get_workflow("other") is None
        assert store.get_workflow("chain", 2) is None
        assert store.get_workflow_version("other") is None
        assert store.get_workflow_version("chain", 2) is None

    def test_a_version_keeps_its_history(self, store: ExecutionStore, clock: ManualClock) -> None:
        store.save_workflow(chain(1), change_notes="first", created_by="ann", now=clock())
        clock.advance(10)
        store.save_workflow(chain(2), now=clock())
        first = store.get_workflow_version("chain", 1)
        assert first == WorkflowVersion(
            workflow_id="chain",
            version=1,
            name="chain",
            change_notes="first",
            created_by="ann",
            created_at=datetime(2030, 1, 1, tzinfo=UTC),
            definition=chain(1),
        )
        newest = store.get_workflow_version("chain")
        assert newest is not None
        assert (newest.version, newest.change_notes, newest.created_by) == (2, None, None)
        assert newest.created_at == clock()

    def test_versions_are_listed_newest_first(self, store: ExecutionStore) -> None:
        for length in range(1, 6):
            store.save_workflow(chain(length))
        assert [row.version for row in store.list_workflow_versions("chain").items] == [5, 4, 3, 2, 1]

    def test_an_unknown_workflow_lists_no_versions(self, store: ExecutionStore) -> None:
        page = store.list_workflow_versions("other")
        assert (page.items, page.next_cursor) == ([], None)

    def test_workflows_are_listed_by_id_with_their_newest_version(
        self, store: ExecutionStore, clock: ManualClock
    ) -> None:
        created = clock()
        for name in ("b", "c", "a"):
            store.save_workflow(chain(1, name), now=clock())
        updated = clock.advance(5)
        store.save_workflow(chain(2, "b"), now=clock())
        listed = store.list_workflows().items
        assert [row.id for row in listed] == ["a", "b", "c"]
        assert [(row.latest_version, row.active, row.name) for row in listed] == [
            (1, True, "a"),
            (2, True, "b"),
            (1, True, "c"),
        ]
        assert (listed[1].created_at, listed[1].updated_at) == (created, updated)

    def test_a_filter_lists_active_or_inactive_workflows(self, store: ExecutionStore) -> None:
        for name in ("a", "b", "c"):
            store.save_workflow(single(name))
        store.deactivate_workflow("b")
        assert [row.id for row in store.list_workflows(active=True).items] == ["a", "c"]
        assert [row.id for row in store.list_workflows(active=False).items] == ["b"]
        assert [row.active for row in store.list_workflows().items] == [True, False, True]

    def test_a_deactivated_workflow_starts_nothing_until_it_is_activated(
        self, store: ExecutionStore, driver: StoreDriver
    ) -> None:
        store.save_workflow(single())
        for _ in range(2):  # twice is no error
            store.deactivate_workflow("single")
        answer = store.create_execution(request("single"))
        assert isinstance(answer, UnknownWorkflow)
        assert answer.inactive
        for _ in range(2):
            store.activate_workflow("single")
        assert driver.start("single")

    def test_saving_does_not_activate(self, store: ExecutionStore) -> None:
        store.save_workflow(chain(1))
        store.deactivate_workflow("chain")
        store.save_workflow(chain(2))
        assert isinstance(store.create_execution(request("chain")), UnknownWorkflow)

    def test_deactivating_lets_running_executions_go_on(self, store: ExecutionStore, driver: StoreDriver) -> None:
        execution = driver.start(diamond())
        store.deactivate_workflow("diamond")
        assert isinstance(driver.try_claim(execution, "top"), Claim)

    def test_an_unknown_workflow_can_not_be_activated_or_deactivated(self, store: ExecutionStore) -> None:
        with pytest.raises(UnknownWorkflow):
            store.deactivate_workflow("other")
        with pytest.raises(UnknownWorkflow):
            store.activate_workflow("other")
