"""Arguments that are not UTF-8, as odd file names are: each command names them and ends with 2, over every store."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanloom.cli.exit_codes import run
from spanloom.stores import open_store
from spanloom.testing.workflows import single

pytestmark = pytest.mark.stores("sqlite", "postgres", why="a command opens no store of another process")

ODD = "\udcff"  # as Python reads an argument of the byte 0xff
BY_NAME = [
    ["list", "--metadata", f"k={ODD}"], ["list", "--metadata", f"{ODD}=v"], ["list", "--workflow", ODD],
    ["cancel", "--workflow", ODD, "--yes"], ["retry", "--metadata", f"k={ODD}", "--yes"], ["workflows", ODD],
    ["dead-letters", "--workflow", ODD], ["register", "FILE", "--notes", ODD], ["register", "FILE", "--by", f"a{ODD}"],
]  # fmt: skip
BY_ID = [["show", f"3f9a21c4{ODD}"], ["logs", ODD], ["trace", f"3f9a21c4{ODD}"]]


@pytest.fixture
def url(store_url: str) -> str:
    store = open_store(store_url)
    store.migrate()
    store.save_workflow(single())
    store.close()
    return store_url


@pytest.mark.parametrize("command", BY_NAME, ids=lambda command: ascii(" ".join(command)))
def test_an_argument_that_no_store_can_hold_is_named(
    url: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    definition = tmp_path / "single.json"
    definition.write_text(single().to_json())
    arguments = [str(definition) if word == "FILE" else word for word in command]
    assert run([*arguments, "--store", url]) == 2
    *_, said = capsys.readouterr().err.splitlines()  # a command that changes something warns of a Redis that is away
    assert "udcff' contains half of a surrogate pair (of bytes that are not UTF-8)" in said


@pytest.mark.parametrize("command", BY_ID, ids=lambda command: ascii(" ".join(command)))
def test_an_id_that_no_execution_has_is_named(url: str, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--store", url]) == 2
    said = capsys.readouterr().err
    assert "udcff" in said
    assert len(said.splitlines()) <= 3
