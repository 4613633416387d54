"""What Postgres refuses is never to be kept, or not now; one refusal costs no other item its answer."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from spanloom.cli.exit_codes import DONE, run
from spanloom.engine.errors import (
    ConfigurationError,
    PayloadRejected,
    SpanloomError,
    StoreRefused,
    StoreUnavailable,
    Unavailability,
)
from spanloom.engine.store.requests import Claim, NodeKey, Outcome, Refusal
from spanloom.stores.postgres import accelerated, connections, time_limit
from spanloom.stores.postgres.store import PostgresExecutionStore
from spanloom.testing.driver import StoreDriver
from spanloom.testing.workflows import single
from support.refusing import USER, grant, refusing, revoke, set_for_user, user_url

FORMS = [pytest.param(True, id="accelerated"), pytest.param(False, id="python")]


@pytest.fixture(params=FORMS)
def store(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[PostgresExecutionStore]:
    store = PostgresExecutionStore(postgres_url, accelerated=request.param)
    store.save_workflow(single())
    yield store
    store.close()


NEVER = ["23514", "23505", "P0001", "44000", "22001", "22P02", "54000", "21000"]
NOT_NOW = {
    "42501": Unavailability.RIGHTS,
    "28000": Unavailability.RIGHTS,
    "25006": Unavailability.READ_ONLY,
    "57014": Unavailability.TIME_LIMIT,
    "25P03": Unavailability.TIME_LIMIT,
    "25P04": Unavailability.TIME_LIMIT,
    "53000": Unavailability.RESOURCES,
    "53100": Unavailability.RESOURCES,
    "53200": Unavailability.RESOURCES,
    "53300": Unavailability.RESOURCES,
    "55P03": Unavailability.LOCKED,
    "57P03": Unavailability.AWAY,
    "58030": Unavailability.STORAGE,
    "58P01": Unavailability.STORAGE,
    "XX000": Unavailability.STORAGE,
    "XX001": Unavailability.STORAGE,
    "42P01": Unavailability.SCHEMA,
    "42883": Unavailability.SCHEMA,
    "42809": Unavailability.SCHEMA,
    "0A000": Unavailability.OTHER,
    "YY123": Unavailability.OTHER,
}


def test_the_driver_logs_nothing_of_a_refusal(
    store: PostgresExecutionStore, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    driver = StoreDriver(store)
    executions = [driver.start("single") for _ in range(2)]
    records = [driver.outcome(one, driver.claim(one, "only")) for one in executions]
    for table in ("node_results", "events"):
        with refusing(postgres_url, "53100", table), pytest.raises(StoreUnavailable):
            store.record(records)
        with refusing(postgres_url, "53100", table), pytest.raises(StoreUnavailable):
            driver.start("single") if table == "events" else driver.send(records[0])
    many = [driver.outcome(one, driver.claim(one, "only")) for one in [driver.start("single") for _ in range(20)]]
    with refusing(postgres_url, "53100", "node_results"), pytest.raises(StoreUnavailable):
        store.record(many)
    assert caplog.messages == []


@pytest.mark.one_in(3)
@pytest.mark.parametrize("state", NEVER)
def test_a_record_that_can_never_be_kept_is_refused_with_the_databases_words(
    store: PostgresExecutionStore, postgres_url: str, state: str
) -> None:
    driver = StoreDriver(store)
    execution = driver.start("single")
    node = driver.claim(execution, "only")
    with refusing(postgres_url, state), pytest.raises((StoreRefused, PayloadRejected), match="no such words here"):
        driver.record(execution, node)
    assert driver.record(execution, node).recorded


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("state", "reason"), NOT_NOW.items())
def test_a_record_that_may_be_kept_later_is_unavailable_with_the_reason(
    store: PostgresExecutionStore, postgres_url: str, state: str, reason: Unavailability
) -> None:
    driver = StoreDriver(store)
    execution = driver.start("single")
    node = driver.claim(execution, "only")
    with (
        refusing(postgres_url, state),
        pytest.raises(StoreUnavailable, match="no such words here") as refused,
    ):
        driver.record(execution, node)
    assert refused.value.reason is reason
    assert driver.record(execution, node).recorded


@pytest.mark.parametrize(
    ("state", "error"), [("53200", StoreUnavailable), ("58030", StoreUnavailable), ("P0001", StoreRefused)]
)
def test_one_record_that_is_refused_costs_no_other_its_answer(
    store: PostgresExecutionStore, postgres_url: str, state: str, error: type[SpanloomError]
) -> None:
    driver = StoreDriver(store)
    executions = [driver.start("single") for _ in range(5)]
    records = [driver.outcome(one, driver.claim(one, "only"), data=place) for place, one in enumerate(executions)]
    with refusing(postgres_url, state, when="new.data = '2'"):
        answers = store.record(records)
    assert [answer.recorded for answer in answers] == [True, True, False, True, True]
    assert isinstance(answers[2].error, error)
    assert driver.send(records[2]).recorded


@pytest.mark.parametrize(
    ("state", "error"), [("53200", StoreUnavailable), ("54000", PayloadRejected), ("P0001", StoreRefused)]
)
def test_one_claim_that_is_refused_costs_no_other_its_answer(
    store: PostgresExecutionStore, postgres_url: str, state: str, error: type[SpanloomError]
) -> None:
    driver = StoreDriver(store)
    executions = [driver.start("single") for _ in range(4)]
    keys = [NodeKey(one, "only") for one in executions]
    with refusing(postgres_url, state, table="events", when=f"new.execution_id = '{executions[1]}'"):
        answers = store.claim([*keys, NodeKey("nothing", "only")], worker_id=driver.worker_id, token="t")
    assert [type(answer) for answer in answers] == [Claim, error, Claim, Claim, Refusal]
    assert set(store.list_claims(driver.worker_id)) == {keys[0], keys[2], keys[3]}
    assert isinstance(driver.try_claim(executions[1], "only"), Claim)


def test_after_some_claims_in_a_row_the_rest_of_a_batch_is_not_tried(
    store: PostgresExecutionStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = StoreDriver(store)
    keys = [NodeKey(driver.start("single"), "only") for _ in range(9)]
    connected = store._connections
    calls: list[int] = []
    for name in ("call", "step"):
        genuine = getattr(connected, name)
        monkeypatch.setattr(connected, name, lambda *a, g=genuine, **o: (calls.append(1), g(*a, **o))[1])
    with refusing(postgres_url, "53100", table="events"), pytest.raises(StoreUnavailable):
        store.claim(keys, worker_id=driver.worker_id)
    assert len(calls) == 1 + 3  # together, and the first ones alone


# ---- rights, settings and schema that change while it is open ----


@pytest.fixture
def user(postgres_url: str) -> Iterator[PostgresExecutionStore]:
    """A store under a user of its own, open."""
    with user_url(postgres_url) as url:
        store = PostgresExecutionStore(url)
        store.save_workflow(single())
        yield store
        store.close()


def test_rights_that_are_missing_when_a_store_is_opened_are_a_mistake_of_its_configuration(postgres_url: str) -> None:
    with user_url(postgres_url) as url, psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute("revoke select on spanloom.alembic_version from worker_of_tests")
        store = PostgresExecutionStore(url)
        with pytest.raises(ConfigurationError, match="lacks a right"):
            store.open()
        grant(other)
        store.open()
        store.close()


def test_rights_that_are_revoked_afterwards_may_come_back(user: PostgresExecutionStore, postgres_url: str) -> None:
    driver = StoreDriver(user)
    execution = driver.start("single")
    node = driver.claim(execution, "only")
    with psycopg.connect(postgres_url, autocommit=True) as other:
        revoke(other)
        for use in _uses(driver, execution, node):
            with pytest.raises(StoreUnavailable, match="permission denied") as refused:
                use()
            assert refused.value.reason is Unavailability.RIGHTS
        grant(other)
    assert driver.record(execution, node).recorded


def test_a_database_that_is_read_only_may_be_written_again(user: PostgresExecutionStore, postgres_url: str) -> None:
    driver = StoreDriver(user)
    execution = driver.start("single")
    node = driver.claim(execution, "only")
    with psycopg.connect(postgres_url, autocommit=True) as other:
        set_for_user(other, "default_transaction_read_only", "on")
        for use in _uses(driver, execution, node):
            with pytest.raises(StoreUnavailable, match="read-only transaction") as refused:
                use()
            assert refused.value.reason is Unavailability.READ_ONLY
        set_for_user(other, "default_transaction_read_only", None)
    assert driver.record(execution, node).recorded


@pytest.mark.parametrize("setting", ["statement_timeout", "transaction_timeout", "lock_timeout"])
def test_a_limit_of_the_server_may_be_lifted(user: PostgresExecutionStore, postgres_url: str, setting: str) -> None:
    driver = StoreDriver(user)
    execution = driver.start("single")
    node = driver.claim(execution, "only")
    with psycopg.connect(postgres_url, autocommit=True) as other:
        if other.execute("select 1 from pg_settings where name = %s", [setting]).fetchone() is None:
            pytest.skip(f"this Postgres has no {setting}")
        set_for_user(other, setting, "50ms")
        with psycopg.connect(postgres_url) as holder:
            holder.execute("select from spanloom.node_runs where execution_id = %s for update", [execution])
            with pytest.raises(StoreUnavailable, match="timeout") as refused:
                driver.record(execution, node)
        assert refused.value.reason in (Unavailability.TIME_LIMIT, Unavailability.LOCKED)
        set_for_user(other, setting, None)
    assert driver.record(execution, node).recorded


def test_a_schema_that_is_being_restored_may_be_back(store: PostgresExecutionStore, postgres_url: str) -> None:
    driver = StoreDriver(store)
    execution = driver.start("single")
    node = driver.claim(execution, "only")
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute("alter schema spanloom rename to elsewhere")
        for use in (*_uses(driver, execution, node), store.health, lambda: store.get_execution(execution)):
            with pytest.raises(StoreUnavailable) as refused:
                use()
            assert refused.value.reason is Unavailability.SCHEMA
        other.execute("alter schema elsewhere rename to spanloom")
    store.health()
    assert driver.record(execution, node).recorded


def _uses(driver: StoreDriver, execution: str, node: Any) -> list[Callable[[], object]]:
    return [
        lambda: driver.record(execution, node),
        lambda: driver.start("single"),
        lambda: driver.store.sweep(heads={}, epoch=0),
        lambda: driver.store.renew_lease(driver.worker_id, lease_seconds=60),
        lambda: driver.store.cancel_execution(execution),
    ]


# ---- a server process that does not answer ----


@pytest.mark.one_in(3)
@pytest.mark.parametrize("use", ["record", "claim", "sweep", "lease", "read", "start"])
def test_a_server_process_that_stands_still_holds_no_call_for_ever(
    store: PostgresExecutionStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    monkeypatch.setattr(time_limit.TimeLimitedConnection, "limit_seconds", 0.3)
    monkeypatch.setattr(connections, "STATEMENT_SECONDS", 0.3)
    monkeypatch.setattr(connections, "LEASE_SECONDS", 0.3)
    monkeypatch.setattr(accelerated, "LEASE_SECONDS", 0.3)
    limited = PostgresExecutionStore(postgres_url, accelerated=store._accelerated)
    driver = StoreDriver(limited)
    limited.renew_lease(driver.worker_id, lease_seconds=60)
    execution, other = driver.start("single"), driver.start("single")
    node = driver.claim(execution, "only")
    calls: dict[str, Callable[[], object]] = {
        "record": lambda: driver.record(execution, node),
        "claim": lambda: driver.try_claim(other, "only"),
        "sweep": lambda: limited.sweep(heads={}, epoch=0),
        "lease": lambda: limited.renew_lease(driver.worker_id, lease_seconds=60),
        "read": lambda: limited.get_execution(execution),
        "start": lambda: driver.start("single"),
    }
    with psycopg.connect(postgres_url, autocommit=True) as watcher:
        pids = [
            pid
            for (pid,) in watcher.execute(
                "select pid from pg_stat_activity where datname = current_database()"
                " and application_name = 'spanloom' and pid <> pg_backend_pid()"
            )
        ]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailable, match="time limit") as refused:
            calls[use]()
        assert refused.value.reason is Unavailability.TIME_LIMIT
        calls[use]()  # over a connection of its own
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    limited.close()


@pytest.mark.parametrize("limited_by", ["psycopg", "us"])
def test_a_call_that_waits_for_a_lock_is_cancelled_in_the_server(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, limited_by: str
) -> None:
    if limited_by == "us":  # as with a psycopg whose waits have no limit
        monkeypatch.setattr(time_limit, "_WAIT_TIMEOUT", None)
        monkeypatch.setattr(time_limit, "_LATE", time_limit._Late)
    monkeypatch.setattr(connections, "STATEMENT_SECONDS", 0.2)
    store = PostgresExecutionStore(postgres_url)
    driver = StoreDriver(store)
    execution = driver.start(single())
    node = driver.claim(execution, "only")
    with psycopg.connect(postgres_url) as holder:
        holder.execute("select from spanloom.node_runs where execution_id = %s for update", [execution])
        with pytest.raises(StoreUnavailable, match="time limit"):
            driver.record(execution, node)
        waiting = (
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        )
        pause = threading.Event()
        while holder.execute(waiting).fetchone() != (0,):
            pause.wait(0.01)
    assert driver.record(execution, node).recorded
    store.close()


@pytest.mark.parametrize("state", ["53200", "P0001"])
def test_one_row_that_can_not_be_swept_holds_up_no_other(
    store: PostgresExecutionStore, postgres_url: str, state: str
) -> None:
    driver = StoreDriver(store)
    executions = [driver.start("single") for _ in range(4)]
    for one in executions:
        driver.record(one, driver.claim(one, "only"), Outcome.RETRY, error='{"type": "E", "message": ""}')
    with refusing(postgres_url, state, "events", f"new.execution_id = '{executions[1]}'"):
        swept = store.sweep(heads={}, epoch=0)
        assert {job.execution_id for job in swept.jobs} == {executions[0], executions[2], executions[3]}
        assert "no such words here" in str(swept.errors[executions[1]])
        with pytest.raises((StoreUnavailable, StoreRefused), match="no such words here"):
            store.sweep(heads={}, epoch=0)  # no other is due
    assert [job.execution_id for job in store.sweep(heads={}, epoch=0).jobs] == [executions[1]]


# ---- where it is shown ----


def test_what_keeps_a_store_from_writing_is_shown_by_those_that_read_it(
    user: PostgresExecutionStore, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    execution = StoreDriver(user).start("single")
    url = postgres_url.replace("://spanloom@", f"://{USER}@")
    assert user.write_problem() is None

    def shown(*command: str) -> str:
        assert run([*command, "--store", url]) == DONE
        return capsys.readouterr().err

    assert shown("stats") == shown("show", execution) == ""
    with psycopg.connect(postgres_url, autocommit=True) as other:
        set_for_user(other, "default_transaction_read_only", "on")
        assert "takes no writes now: the database is read-only" in shown("stats")
        assert "takes no writes now: the database is read-only" in shown("show", execution)
        set_for_user(other, "default_transaction_read_only", None)
        other.execute(f"revoke insert on spanloom.events, spanloom.logs from {USER}")
        assert "its user may not write events, logs" in shown("stats", "--json")
        grant(other)
    assert user.write_problem() is None
