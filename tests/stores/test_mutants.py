"""The conformance suite finds what is broken: five mutants fail it, each where they should, a healthy store passes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.torture  # it tests the tests, by running them again and again

HERE = Path(__file__).parent
SUBJECTS = {  # each mutant, and the subjects of the suite that must tell on it
    "LostIncrement": "TestJoinRaces",
    "MissingFence": "TestFences",
    "Aliasing": "TestAliasing",
    "NonAtomicRecord": "TestAtomicity",
    "UnstablePageOrder": "TestPages",
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[str]]:
    """Run each mutant, and the healthy store, through the subjects; name the failures by (store, subject)."""
    report = tmp_path_factory.mktemp("mutants") / "report.xml"
    wanted = [
        f"{store}::{subject}" for mutant, subject in SUBJECTS.items() for store in (f"Test{mutant}", "TestWrapped")
    ]
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            f"--junitxml={report}",
            *(f"{HERE / 'mutants.py'}::{one}" for one in wanted),
        ],
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == pytest.ExitCode.TESTS_FAILED, ran.stdout + ran.stderr
    found: dict[tuple[str, str], list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        store, subject = case.get("classname", "").split(".")[-2:]
        failures = found.setdefault((store, subject), [])
        if case.find("failure") is not None:
            failures.append(case.get("name", ""))
        assert case.find("error") is None, f"{case.get('name')} of {store} could not run"
    return found


@pytest.mark.parametrize(("mutant", "subject"), SUBJECTS.items(), ids=SUBJECTS)
def test_a_mutant_fails_where_it_is_broken(
    verdicts: dict[tuple[str, str], list[str]], mutant: str, subject: str
) -> None:
    assert verdicts[f"Test{mutant}", subject], f"{subject} does not notice {mutant}"


@pytest.mark.parametrize("subject", SUBJECTS.values())
def test_the_healthy_store_passes_the_same_subjects(verdicts: dict[tuple[str, str], list[str]], subject: str) -> None:
    assert verdicts["TestWrapped", subject] == []
