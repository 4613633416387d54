"""The program of the first steps, as its readers run it: a process of its own, a real Redis, a SQLite file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from spanloom.engine import ExecutionStatus
from spanloom.stores import open_store

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.py"


def test_the_quickstart_prints_the_output_and_leaves_its_execution_in_the_store(redis_url: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SPANLOOM_")}

    done = subprocess.run(
        [sys.executable, "-W", "error", str(QUICKSTART)],
        cwd=tmp_path,
        env=environment | {"SPANLOOM_REDIS_URL": redis_url},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert "order 7: 9.90 paid" in done.stdout.splitlines()
    assert "Traceback" not in done.stdout + done.stderr
    store = open_store(f"sqlite:///{tmp_path}/orders.db")
    store.open()
    try:
        (execution,) = store.list_executions().items
        assert execution.status is ExecutionStatus.COMPLETED
        assert execution.input == {"id": 7, "cents": 990}
        assert [run.node_id for run in store.get_node_results(execution.id)] == ["charge", "email"]
    finally:
        store.close()
