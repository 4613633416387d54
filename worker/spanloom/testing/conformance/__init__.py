"""The conformance suite for execution stores: everything the port promises, as tests that see only the port.

Subclass `StoreConformance` in a test module and give it a `store` fixture that yields a fresh, migrated, empty store:

    class TestMyStore(StoreConformance):
        @pytest.fixture
        def store(self, tmp_path):
            store = MyStore(tmp_path / "my.db")
            store.migrate()
            yield store
            store.close()

Each subject is a nested class, so `pytest -k TestJoinRaces` runs one. Nothing asks which store it runs on.
"""

from __future__ import annotations

from pkgutil import iter_modules

import pytest

from spanloom.engine.store import ExecutionStore
from spanloom.testing.clock import ManualClock
from spanloom.testing.driver import StoreDriver

# Before the modules are imported: only then do their assertions say what they compared.
pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in iter_modules(__path__)))

from spanloom.testing.conformance import (  # noqa: E402 (the rewriting comes first)
    attempts,
    by_hand,
    cancels,
    child_ends,
    children,
    claims,
    concurrency,
    control_rules,
    exports,
    failures,
    families,
    fences,
    holds,
    item_control,
    item_failures,
    items,
    join_races,
    joins,
    leases,
    lines,
    nested_retries,
    pauses,
    payloads,
    purges,
    random_families,
    random_graphs,
    reads,
    records,
    replays,
    resets,
    retries,
    routing,
    starts,
    suspects,
    sweeps,
    telemetry,
    transactions,
    versions,
    waits,
)

__all__ = ["StoreConformance"]


class StoreConformance:
    """Hold a store to the port's contract; override the `store` fixture in a subclass whose name begins with Test."""

    @pytest.fixture
    def store(self) -> ExecutionStore:
        """A fresh, migrated, empty store."""
        pytest.fail("give your StoreConformance subclass a `store` fixture that yields a fresh, migrated store")

    @pytest.fixture
    def clock(self) -> ManualClock:
        """The time that the tests tell the store."""
        return ManualClock()

    @pytest.fixture
    def driver(self, store: ExecutionStore, clock: ManualClock) -> StoreDriver:
        """A worker played by hand, on the tests' time."""
        return StoreDriver(store, clock=clock)

    TestVersions = versions.Versions
    TestStarts = starts.Starts
    TestIdempotencyKeys = starts.IdempotencyKeys
    TestClaims = claims.Claims
    TestRecords = records.Records
    TestFences = fences.Fences
    TestReplays = fences.Replays
    TestJoins = joins.Joins
    TestSkips = joins.Skips
    TestRandomGraphs = random_graphs.RandomGraphs
    TestFailures = failures.Failures
    TestRetries = failures.Retries
    TestRouting = routing.Routing
    TestHandledFailures = routing.HandledFailures
    TestChildStarts = children.ChildStarts
    TestChildDeadlines = children.ChildDeadlines
    TestChildEnds = child_ends.ChildEnds
    TestItems = items.Items
    TestItemFailures = item_failures.ItemFailures
    TestItemControl = item_control.ItemControl
    TestItemRounds = item_control.ItemRounds
    TestItemReplays = item_control.ItemReplays
    TestWaits = waits.Waits
    TestWaitRules = waits.WaitRules
    TestCancels = cancels.Cancels
    TestAttempts = attempts.Attempts
    TestControls = control_rules.Controls
    TestFamilies = families.Families
    TestRandomFamilies = random_families.RandomFamilies
    TestPauses = pauses.Pauses
    TestHolds = holds.Holds
    TestResumes = pauses.Resumes
    TestExecutionRetries = retries.ExecutionRetries
    TestNestedRetries = nested_retries.NestedRetries
    TestResets = resets.Resets
    TestReplayedStarts = replays.ReplayedStarts
    TestFailuresByHand = by_hand.FailuresByHand
    TestDiscards = by_hand.Discards
    TestEndsByHand = by_hand.EndsByHand
    TestPurges = purges.Purges
    TestLeases = leases.Leases
    TestHeldClaims = by_hand.HeldClaims
    TestLostWorkers = sweeps.LostWorkers
    TestDueRows = sweeps.DueRows
    TestEpochs = sweeps.Epochs
    TestSuspects = suspects.Suspects
    TestReads = reads.Reads
    TestPages = reads.Pages
    TestLogs = telemetry.Logs
    TestLinesOfRunningNodes = lines.LinesOfRunningNodes
    TestSpans = telemetry.Spans
    TestRunSpans = exports.RunSpans
    TestSpansToExport = exports.SpansToExport
    TestEvents = telemetry.Events
    TestPayloads = payloads.Payloads
    TestAliasing = payloads.Aliasing
    TestTransactions = transactions.Transactions
    TestAtomicity = transactions.Atomicity
    TestLifecycles = transactions.Lifecycles
    TestJoinRaces = join_races.JoinRaces
    TestItemRaces = item_control.ItemRaces
    TestChildEndRaces = child_ends.ChildEndRaces
    TestConcurrency = concurrency.Concurrency
