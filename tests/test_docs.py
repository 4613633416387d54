"""The documents against the code: their examples run, their links lead somewhere, their tables are the code's."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import click
import pytest

from spanloom.cli.app import SUBCOMMANDS, root
from spanloom.engine import Settings, Workflow, WorkflowEngine
from spanloom.engine.store.states import EXECUTION_TRANSITIONS, NODE_TRANSITIONS, WaitKind
from spanloom.engine.telemetry.metrics import METRICS
from spanloom.engine.workflow.files import load_workflow
from spanloom.engine.workflow.validation import find_problems
from spanloom.worker import WorkerOptions

ROOT = Path(__file__).parents[1]
README, CONTRIBUTING, CHANGELOG = ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"
AGENTS, SECURITY = ROOT / "AGENTS.md", ROOT / "SECURITY.md"
STATE_MACHINE, WORKFLOWS, OBSERVABILITY, ARCHITECTURE, QUICKSTART, CLI, CONFIGURATION, PERFORMANCE = (
    ROOT / "docs" / f"{name}.md"
    for name in (
        "state-machine",
        "workflows",
        "observability",
        "architecture",
        "quickstart",
        "cli",
        "configuration",
        "performance",
    )
)
README_LINES = 150  # at most
DOCUMENTS = [README, CONTRIBUTING, CHANGELOG, AGENTS, SECURITY, *sorted((ROOT / "docs").rglob("*.md"))]
PUBLIC_MODULES = ["spanloom.engine", "spanloom.stores", "spanloom.worker", "spanloom.testing"]


def blocks(document: Path, language: str) -> list[str]:
    """Return the fenced blocks of one language, each preceded by empty lines so that errors name the right line."""
    text = document.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text.count("\n", 0, match.start(1)) + match[1] for match in found]


def name_of(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


def table_rows(document: Path, pattern: str) -> list[str]:
    """Return what `pattern` captures in the first cells of a document's tables."""
    cells = [line.split("|")[1] for line in document.read_text().splitlines() if line.startswith("| `")]
    return [found for cell in cells for found in re.findall(pattern, cell)]


def modules() -> Iterator[ModuleType]:
    """Import every module of the four packages but the programs among them."""
    for package_name in [*PUBLIC_MODULES, "spanloom.cli"]:
        package = importlib.import_module(package_name)
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{package_name}."):
            if not found.name.endswith(".__main__") and ".migrations." not in found.name:
                yield importlib.import_module(found.name)


# ---- examples ----


def test_the_quickstart_is_shown_as_it_is() -> None:
    assert (ROOT / "examples" / "quickstart.py").read_text() in [
        block.lstrip("\n") for block in blocks(QUICKSTART, "python")
    ]


@pytest.mark.parametrize(
    ("document", "programs", "printed"), [(README, 1, "Thank you: 9.90 paid"), (QUICKSTART, 3, "order 7: 9.90 paid")]
)
def test_the_programs_of_a_document_run_one_after_the_other(
    document: Path,
    programs: int,
    printed: str,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # given: what the text around them says: a Redis, a working directory, and one program after the other
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPANLOOM_REDIS_URL", redis_url)
    monkeypatch.delenv("SPANLOOM_STORE_URL", raising=False)
    monkeypatch.delenv("SPANLOOM_NAMESPACE", raising=False)
    found = [block.replace('redis://localhost")', f'{redis_url}")') for block in blocks(document, "python")]
    assert len(found) == programs
    shown = ModuleType("shown")
    monkeypatch.setitem(sys.modules, "shown", shown)
    shown.__dict__["__name__"] = "__main__"

    for block in found:
        exec(compile(block, str(document), "exec"), shown.__dict__)

    assert printed in capsys.readouterr().out.splitlines()
    engine = shown.__dict__["engine"]
    assert isinstance(engine, WorkflowEngine)
    engine.close()


def test_the_readme_fits_its_page_and_begins_with_the_two_commands() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= README_LINES
    first = "\n".join(lines[:50])
    assert "make demo" in first
    assert "make test" in first


def test_every_section_on_workflows_has_a_picture_and_a_program_that_runs(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPANLOOM_REDIS_URL", redis_url)
    monkeypatch.setenv("SPANLOOM_NAMESPACE", "workflows")
    program = ModuleType("workflows")
    monkeypatch.setitem(sys.modules, "workflows", program)
    program.__dict__["__name__"] = "workflows"
    sections = WORKFLOWS.read_text().count("\n## ") - 1  # the last one shows a file
    assert len(blocks(WORKFLOWS, "mermaid")) == sections
    assert len(blocks(WORKFLOWS, "python")) == sections + 1

    for block in blocks(WORKFLOWS, "python"):
        exec(compile(block, str(WORKFLOWS), "exec"), program.__dict__)


def test_the_workflow_files_that_are_shown_are_the_same_one_and_fit_to_run(tmp_path: Path) -> None:
    (shown,), (as_yaml,) = blocks(WORKFLOWS, "json"), blocks(WORKFLOWS, "yaml")
    (tmp_path / "everything.yaml").write_text(as_yaml)

    assert find_problems(Workflow.from_json(shown)) == []
    assert load_workflow(tmp_path / "everything.yaml") == Workflow.from_json(shown)


def test_the_store_wiring_of_contributing_is_all_that_the_conformance_suite_needs(tmp_path: Path) -> None:
    (wiring,) = blocks(CONTRIBUTING, "python")
    (tmp_path / "test_your_store.py").write_text(wiring)

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "TestClaims",
            str(tmp_path),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d\d passed", done.stdout), done.stdout


def test_no_document_has_a_python_block_that_no_test_runs() -> None:
    assert [document for document in DOCUMENTS if blocks(document, "python")] == [
        README,
        CONTRIBUTING,
        QUICKSTART,
        WORKFLOWS,
    ]


def test_the_examples_in_docstrings_run() -> None:
    results = [doctest.testmod(module) for module in modules()]
    assert sum(result.failed for result in results) == 0


# ---- pictures ----


def test_the_picture_of_the_demo_is_what_the_command_draws_now() -> None:
    program = runpy.run_path(str(ROOT / "docs" / "pictures.py"))
    record = (ROOT / "docs" / "images" / "demo.json").read_text()

    drawn = _text_of_picture(program["drawn"](*program["played"](record)))

    assert "ranking" in drawn
    assert drawn == _text_of_picture((ROOT / "docs" / "images" / "demo.svg").read_text()), "run `make pictures`"


def _text_of_picture(svg: str) -> str:
    """Return what an SVG says, without blanks: versions of rich cut the same line into different pieces."""
    return "".join("".join(ElementTree.fromstring(svg).itertext()).partition("make\xa0demo")[2].split())


# ---- what documents name ----


def anchors(document: Path) -> set[str]:
    return {anchor_of(heading) for heading in re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)}


def anchor_of(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_to_a_file_leads_to_one(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), f"{document.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{document.name} links to {target}"


def test_the_way_of_one_node_job_names_what_is_there() -> None:
    way = ARCHITECTURE.read_text().partition("## The way of one node job")[2].partition("\n## ")[0]
    steps = re.findall(
        r"^\d\. \[[\w/.]+\]\(\.\./(\w+)/(spanloom/\w+(?:/\w+)+)\.py\):\s+`(\w+)\.(\w+)`", way, re.MULTILINE
    )
    assert len(steps) == way.count("\n1. ") + len(re.findall(r"^[2-9]\. ", way, re.MULTILINE))
    for _, path, class_name, method in steps:
        module = importlib.import_module(path.replace("/", "."))
        assert callable(getattr(getattr(module, class_name), method))


def test_every_room_of_the_architecture_is_there_and_every_one_that_is_there_stands_in_it() -> None:
    rooms = ARCHITECTURE.read_text().partition("## Rooms\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in rooms.splitlines() if line.startswith("| [")]
    named = {(ARCHITECTURE.parent / path).resolve() for row in rows for path in re.findall(r"\]\(([^)]+)\)", row)}
    assert all(path.is_dir() for path in named)

    packages = {ROOT / root / "spanloom" / name for root, name in re.findall(r"\(\.\./(\w+)/spanloom/(\w+)\)", rooms)}
    inner = {one.parent for root in ("engine", "stores", "worker") for one in (ROOT / root).glob("*/*/*/__init__.py")}
    drawers = {room for room in inner if room.parent.name not in ("cli", "testing") and room.name != "migrations"}
    assert packages | drawers <= named


def test_the_table_of_commands_is_that_of_the_command() -> None:
    table = CLI.read_text().partition("\n## ")[0]
    assert re.findall(r"^\| `spanloom ([\w-]+)", table, re.MULTILINE) == list(SUBCOMMANDS)


def test_every_option_of_every_command_stands_in_its_tables_and_no_other() -> None:
    context = click.Context(root)
    commands: dict[str, click.Command] = {}
    for name in SUBCOMMANDS:
        command = root.get_command(context, name)
        assert command is not None
        inner = command.commands if isinstance(command, click.Group) else {}
        commands |= {f"{name} {word}": one for word, one in inner.items()} or {name: command}

    documented = {
        title.removeprefix("spanloom "): text for title, text in sections(CLI) if title.startswith("spanloom ")
    }
    assert set(documented) == set(commands)
    for name, command in commands.items():
        known = {
            spelling
            for option in command.params
            if isinstance(option, click.Option)
            for spelling in (*option.opts, *option.secondary_opts)
        }
        assert option_names(CLI, f"spanloom-{name.replace(' ', '-')}") == known, name


def sections(document: Path) -> list[tuple[str, str]]:
    """Return a document's headings, each with the text up to the next one."""
    parts = re.split(r"^#+ (.+)$", document.read_text(), flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def option_names(document: Path, anchor: str) -> set[str]:
    """Return the options in the tables of a section, and of the sections that its line `Also:` links to."""
    (text,) = (text for title, text in sections(document) if anchor_of(title) == anchor)
    also = text.partition("Also:")[2].partition(". ")[0].partition("\n\n")[0]
    found: set[str] = set()
    for path, further in re.findall(r"\]\(([\w.-]*)#([\w-]+)\)", also):
        found |= option_names(document.parent / path if path else document, further)
    for line in text.splitlines():
        if line.startswith("| `"):
            first, second, *_ = line.split("|")[1:]
            found |= set(re.findall(r"`(--?[a-z][a-z-]*)`", first if "`-" in first else second))
    return found


def test_the_table_of_worker_options_is_that_of_the_model() -> None:
    (text,) = (text for title, text in sections(CONFIGURATION) if title == "Worker options")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]

    def shown(value: Any) -> str:
        match value:
            case None:
                return "none"
            case bool():
                return str(value).lower()
            case tuple():
                return ",".join(value)
            case float():
                return f"{value:g}"
        return str(value)

    fields = {f"`{name}`": shown(field.default) for name, field in WorkerOptions.model_fields.items()}
    assert {name: default for name, _, default, _ in rows} == fields
    assert len(rows) == len(fields)


def test_the_table_of_variables_is_that_of_the_settings() -> None:
    known = {f"SPANLOOM_{name.upper()}" for name in Settings.model_fields}
    of_commands = {"SPANLOOM_APP", "SPANLOOM_DEBUG", "SPANLOOM_METRICS_PORT", "SPANLOOM_METRICS_HOST"}
    assert set(table_rows(CONFIGURATION, r"`(SPANLOOM_\w+)`")) == known | of_commands
    text = dict(sections(CONFIGURATION))["Settings"]
    assert all(f"`{name}`" in text for name in Settings.model_fields)


def test_the_table_of_stores_names_every_scheme() -> None:
    from importlib.metadata import entry_points

    offered = {point.name for point in entry_points(group="spanloom.stores")} - {"postgres"}  # short for postgresql
    assert set(table_rows(CONFIGURATION, r"`(\w+)://")) == offered


def test_the_make_targets_that_documents_name_are_there() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for document in DOCUMENTS for name in re.findall(r"`make ([\w-]+)`", document.read_text())}
    assert {"demo", "test", "check", "bench", "torture"} <= named
    assert named <= targets


@pytest.mark.parametrize("document", [README, PERFORMANCE], ids=name_of)
def test_a_document_has_room_for_what_the_benchmarks_write(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    write_block = runpy.run_path(str(ROOT / "bench" / "report.py"))["write_block"]
    copy = tmp_path / document.name
    copy.write_text(document.read_text())

    write_block(copy, "| new figures |")

    before, _, rest = document.read_text().partition("<!-- bench:begin -->\n")
    after = rest.partition("<!-- bench:end -->\n")[2]
    assert copy.read_text() == f"{before}<!-- bench:begin -->\n| new figures |\n<!-- bench:end -->\n{after}"


def test_the_newest_release_of_the_changelog_is_this_one() -> None:
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.findall(r"^## \[(\d[\w.]*)\]", CHANGELOG.read_text(), re.MULTILINE)[0] == version


def test_the_licence_is_apache_2_in_full() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text.splitlines()[1]
    assert all(f"   {number}. " in text for number in range(1, 10))
    assert "END OF TERMS AND CONDITIONS" in text


# ---- the states ----


@pytest.mark.parametrize(
    ("heading", "table"), [("## Execution", EXECUTION_TRANSITIONS), ("## Node run", NODE_TRANSITIONS)]
)
def test_a_drawing_of_states_has_the_transitions_of_its_table(heading: str, table: dict[Any, frozenset[Any]]) -> None:
    section = STATE_MACHINE.read_text().partition(f"{heading}\n")[2].partition("\n## ")[0]
    (drawing,) = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", section, re.DOTALL)
    arrows = re.findall(r"^ +(\S+) --> ([^\s:]+)", drawing, re.MULTILINE)
    assert len(arrows) == len(drawing.splitlines()) == len(set(arrows)), "every line is an arrow, and each stands once"

    drawn = {(source, target) for source, target in arrows if "[*]" not in (source, target)}
    ends = {source for source, target in arrows if target == "[*]"}
    begins = {target for source, target in arrows if source == "[*]"}

    assert drawn == {(source.value, target.value) for source, targets in table.items() for target in targets}
    assert ends == {state.value for state in table if state.ended}
    assert begins
    assert begins <= {state.value for state in table}


def test_the_table_of_wait_kinds_has_all_of_them() -> None:
    assert table_rows(STATE_MACHINE, r"`(\w+)`") == [kind.value for kind in WaitKind]


# ---- docstrings ----


def public_objects() -> Iterator[tuple[str, Any]]:
    """Yield every public name, and the public methods and properties that its class defines."""
    for package_name in PUBLIC_MODULES:
        package = importlib.import_module(package_name)
        for name in package.__all__:
            value = getattr(package, name)
            yield f"{package_name}.{name}", value
            if inspect.isclass(value):
                for member, found in vars(value).items():
                    described = found.__func__ if isinstance(found, classmethod | staticmethod) else found
                    if not member.startswith("_") and (inspect.isfunction(described) or isinstance(found, property)):
                        yield f"{package_name}.{name}.{member}", described


def test_every_public_name_has_a_docstring_that_opens_with_a_sentence() -> None:
    objects = list(public_objects())
    assert len(objects) > 100
    without = [name for name, value in objects if not _opens_with_a_sentence(inspect.getdoc(value) or "")]
    assert without == []


def test_every_package_says_what_is_public() -> None:
    for package_name in PUBLIC_MODULES:
        package = importlib.import_module(package_name)
        names = package.__all__
        assert len(names) == len(set(names)) > 0, package_name
        assert all(hasattr(package, name) for name in names), package_name


def test_every_module_opens_with_what_it_is_responsible_for() -> None:
    sources = [path for name in ("engine", "stores", "worker") for path in (ROOT / name / "spanloom").rglob("*.py")]
    assert len(sources) > 50
    without = [
        str(path.relative_to(ROOT))
        for path in sources
        if not _opens_with_a_sentence(ast.get_docstring(ast.parse(path.read_text())) or "")
    ]
    assert without == []


def _opens_with_a_sentence(docstring: str) -> bool:
    """Say whether the first paragraph is there and ends as a sentence does."""
    return docstring.partition("\n\n")[0].rstrip().endswith(".")


def test_the_table_of_metrics_is_the_one_they_are_made_of() -> None:
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in OBSERVABILITY.read_text().splitlines()
        if line.startswith("| `spanloom.")
    ]
    assert rows == [
        [
            f"`{one.name}`",
            one.kind.value,
            one.unit,
            ", ".join(f"`{name}`" for name in one.attributes) or "none",
            one.description,
        ]
        for one in METRICS
    ]
