"""The commands over a real SQLite store: workflows that are registered, migrated, started and run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spanloom.cli.exit_codes import DONE, FAILED, MISTAKE, run
from spanloom.engine import ExecutionStore
from spanloom.engine.store.models import Execution
from spanloom.stores import open_store
from support.cli import APP, Control, Invoke
from support.fork_server import Finished, run_command

pytestmark = pytest.mark.usefixtures("clean_environment")


class TestDefinitions:
    def test_register_makes_a_version_and_the_same_content_makes_none(
        self, invoke: Invoke, sqlite_url: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "etl.yaml"
        file.write_text("id: etl\nnodes: [{id: a, type: fetch}]\n")
        assert invoke("register", str(file), "--notes", "begun", "--by", "ada") == "etl\t1\n"
        assert json.loads(invoke("register", str(file), "--json")) == {"workflow_id": "etl", "version": 1}
        file.write_text("id: etl\nnodes: [{id: a, type: fetch}, {id: b, type: fetch}]\n")
        assert invoke("register", str(file), "--expect-version", "1") == "etl\t2\n"
        assert invoke("register", str(file), "--expect-version", "1", code=MISTAKE) == ""
        store = open_store(sqlite_url)
        begun = store.get_workflow_version("etl", 1)
        store.close()
        assert begun is not None
        assert (begun.change_notes, begun.created_by) == ("begun", "ada")

    def test_migrate_says_where_and_may_be_repeated(self, invoke: Invoke, sqlite_url: str) -> None:
        assert invoke("migrate") == f"{sqlite_url} has the schema of this release\n"
        assert json.loads(invoke("migrate", "--json")) == {"url": sqlite_url, "migrated": True}

    def test_migrate_makes_the_schema_that_a_postgres_store_lacks(
        self, postgres_url: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        elsewhere = f"{postgres_url}&namespace=elsewhere"
        assert run(["stats", "--store", elsewhere]) == MISTAKE
        assert run(["migrate", "--store", elsewhere]) == DONE
        assert run(["stats", "--store", elsewhere]) == DONE
        assert "workflows\t0" in capsys.readouterr().out


class TestRunning:
    @pytest.fixture
    def app(
        self, sqlite_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., Finished]:
        """An application in the working directory; call it to run a command with its environment."""
        (tmp_path / "shop.py").write_text(APP)
        environment = {"SPANLOOM_STORE_URL": sqlite_url, "SPANLOOM_REDIS_URL": redis_url, "SPANLOOM_APP": "shop:engine"}

        def call(*arguments: str) -> Finished:
            return run_command(arguments, Path.cwd(), {**os.environ, **environment})

        return call

    def test_what_was_started_without_waiting_is_run_by_a_worker_and_read_back(
        self, app: Callable[..., Finished]
    ) -> None:
        started = app("run", "orders", "--input", '{"id": 7}', "--no-wait", "--metadata", "day=monday", "--key", "k7")
        again = app("run", "orders", "--input", '{"id": 7}', "--no-wait", "--key", "k7")
        execution_id = started.stdout.strip()
        assert (started.returncode, again.stdout.strip()) == (DONE, execution_id)

        worker = app("worker", "shop:engine", "--burst", "--name", "w1")
        assert worker.returncode == DONE, worker.stderr

        execution = json.loads(app("list", "--metadata", "day=monday", "--json").stdout)["items"][0]
        assert (execution["id"], execution["status"]) == (execution_id, "completed")
        assert "charge\tcompleted\t1\t" in app("show", execution_id[-10:]).stdout
        assert 'charging\t{"order": 7}' in app("logs", execution_id).stdout
        assert "  run charge\t" in app("trace", execution_id).stdout

    def test_a_key_holds_for_its_time_and_a_deadline_is_kept(self, control: Control, store: ExecutionStore) -> None:
        def start(key: str, key_ttl: str) -> str:
            keyed = ("--key", key, "--key-ttl", key_ttl, "--deadline", "5m")
            code, ((execution_id,),), _ = control("run", "orders", "--input", "1", "--no-wait", *keyed)
            assert code == DONE
            return execution_id

        assert start("long", "1h") == start("long", "1h")
        assert start("short", "0s") != start("short", "0s")
        execution = store.get_execution(start("long", "1h"))
        assert execution is not None
        assert execution.deadline_seconds == 300

    def test_waiting_without_a_worker_ends_with_the_timeout(self, app: Callable[..., Finished]) -> None:
        done = app("run", "orders", "--input", '{"id": 7}', "--timeout", "0.2")
        assert (done.returncode, done.stdout) == (FAILED, "")
        assert "is a worker running?" in done.stderr

    def test_waiting_prints_the_output_or_the_failure(
        self,
        app: Callable[..., Finished],
        sqlite_url: str,
        redis_url: str,
    ) -> None:
        from spanloom.cli.options.loading import load_engine
        from spanloom.engine import WorkflowEngine

        settings = {"SPANLOOM_STORE_URL": sqlite_url, "SPANLOOM_REDIS_URL": redis_url}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", list(sys.path))
            patch.delitem(sys.modules, "shop", raising=False)
            for name, value in settings.items():
                patch.setenv(name, value)
            engine: WorkflowEngine = load_engine("shop:engine")
            with engine, engine.start_workers(1):
                done = app("run", "orders", "--input", '{"id": 7}')
                told = app("run", "orders", "--input", '{"id": 8}', "--json")
                failed = app("run", "orders", "--input", '{"id": -1}')
                refused = app("run", "orders", "--input", '{"id": "x"}')
        assert (done.returncode, done.stdout, done.stderr) == (DONE, '"order 7"\n', "")
        assert set(json.loads(told.stdout)) == set(Execution.model_fields)
        assert (failed.returncode, failed.stdout) == (FAILED, "")
        assert "PermanentError: no such order" in failed.stderr
        assert refused.returncode == MISTAKE
        assert "id" in refused.stderr
