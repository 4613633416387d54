"""Five stores that are broken on purpose, and a healthy one, for test_mutants.py to hold to the conformance suite."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from spanloom.engine.store.models import Execution, Page
from spanloom.engine.store.port import ExecutionStore
from spanloom.engine.store.requests import Claim, NodeKey, RecordRequest, RecordResult
from spanloom.stores import InMemoryExecutionStore
from spanloom.testing.conformance import StoreConformance


class Wrapped:
    """A good store behind a wrapper that breaks one thing."""

    def __init__(self, good: ExecutionStore) -> None:
        self.good = good

    def __getattr__(self, name: str) -> Any:
        return getattr(self.good, name)


class LostIncrement(Wrapped):
    """Counts arrivals by reading a number and writing it back later; a join is ready when that count says so."""

    def __init__(self, good: ExecutionStore) -> None:
        super().__init__(good)
        self.arrived: Counter[NodeKey] = Counter()

    def record(self, records: list[RecordRequest], **options: Any) -> list[RecordResult]:
        joins = [
            (NodeKey(one.execution_id, node.id), len(node.parents)) for one in records for node in self._after(one)
        ]
        seen = {key: self.arrived[key] for key, _ in joins}
        time.sleep(0.001)  # here another thread reads the same numbers
        answers = self.good.record(records, **options)
        for key, _ in joins:
            self.arrived[key] = seen[key] = seen[key] + 1
        short = {key for key, inputs in joins if self.arrived[key] < inputs}
        return [
            answer._replace(jobs=[job for job in answer.jobs if NodeKey(job.execution_id, job.node_id) not in short])
            for answer in answers
        ]

    def _after(self, record: RecordRequest) -> list[Any]:
        execution = self.good.get_execution(record.execution_id)
        workflow = execution and self.good.get_workflow(execution.workflow_id, execution.version)
        return [node for node in workflow.nodes if record.node_id in node.parents] if workflow else []


class MissingFence(Wrapped):
    """Records for whoever holds the claim now, whatever fence the record names."""

    def __init__(self, good: ExecutionStore) -> None:
        super().__init__(good)
        self.held: dict[NodeKey, tuple[int, str]] = {}

    def claim(self, keys: list[NodeKey], *, worker_id: str, **options: Any) -> list[Any]:
        answers = self.good.claim(keys, worker_id=worker_id, **options)
        for key, answer in zip(keys, answers, strict=True):
            if isinstance(answer, Claim):
                self.held[key] = (answer.node.fence, worker_id)
        return answers

    def record(self, records: list[RecordRequest], **options: Any) -> list[RecordResult]:
        return self.good.record([self._unfenced(record) for record in records], **options)

    def _unfenced(self, record: RecordRequest) -> RecordRequest:
        key = record.key
        fence, worker_id = self.held.get(key, (record.fence, record.worker_id))
        return record._replace(fence=fence, worker_id=worker_id)


class Aliasing(Wrapped):
    """Hands out the object that it keeps."""

    def __init__(self, good: ExecutionStore) -> None:
        super().__init__(good)
        self.kept: dict[str, Execution] = {}

    def get_execution(self, execution_id: str) -> Execution | None:
        found = self.good.get_execution(execution_id)
        if found is None:
            return None
        kept = self.kept.get(execution_id)
        if kept is None or kept.status != found.status:
            self.kept[execution_id] = kept = found
        return kept


class NonAtomicRecord(Wrapped):
    """Records the outcome first, and its logs and spans in further steps."""

    def record(self, records: list[RecordRequest], **options: Any) -> list[RecordResult]:
        answers = self.good.record([record._replace(logs=(), spans=()) for record in records], **options)
        for record, answer in zip(records, answers, strict=True):
            if answer.recorded:
                for line in record.logs:
                    self.good.add_log(record.execution_id, line, node_id=record.node_id, item=record.item)
                for span in record.spans:
                    self.good.add_span(record.execution_id, span)
        return answers


class UnstablePageOrder(Wrapped):
    """Pages by offset: what comes in between two pages moves the rest."""

    def list_executions(self, filter: Any = None, *, limit: int = 100, cursor: str | None = None) -> Page[Execution]:
        rows = self.good.list_executions(filter, limit=1000).items
        start = int(cursor or 0)
        more = len(rows) > start + limit
        return Page(items=rows[start : start + limit], next_cursor=str(start + limit) if more else None)


class _InMemory(StoreConformance):
    broken: type[Wrapped] = Wrapped

    @pytest.fixture
    def store(self) -> Iterator[Any]:
        good = InMemoryExecutionStore()
        yield self.broken(good)
        good.close()


class TestWrapped(_InMemory):
    """The wrapper alone breaks nothing."""


class TestLostIncrement(_InMemory):
    broken = LostIncrement


class TestMissingFence(_InMemory):
    broken = MissingFence


class TestAliasing(_InMemory):
    broken = Aliasing


class TestNonAtomicRecord(_InMemory):
    broken = NonAtomicRecord


class TestUnstablePageOrder(_InMemory):
    broken = UnstablePageOrder
