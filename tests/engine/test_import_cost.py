"""`import spanloom.engine` must stay cheap: what it does not need is not loaded."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

#: Database drivers, the SDK, and what only the command line, files or migrations need.
UNWANTED = ("psycopg", "sqlite3", "sqlalchemy", "alembic", "click", "rich", "yaml", "opentelemetry.sdk")


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """What a fresh interpreter loads beyond what RQ and pydantic load (redis-py loads some of the SDK)."""
    code = (
        "import json, sys; import rq, pydantic; before = set(sys.modules); import spanloom.engine;"
        " print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("name", UNWANTED)
def test_importing_the_engine_does_not_load(name: str, loaded: set[str]) -> None:
    found = sorted(module for module in loaded if module == name or module.startswith(f"{name}."))

    assert not found


def test_importing_the_engine_loads_no_other_part_of_spanloom(loaded: set[str]) -> None:
    parts = {module.split(".")[1] for module in loaded if module.startswith("spanloom.")}

    assert parts == {"engine"}
