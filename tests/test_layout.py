"""How the project is laid out: three roots, one namespace, small modules, and imports in one direction."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parent.parent
ROOTS = [PROJECT / name for name in ("engine", "stores", "worker")]
MODULES = sorted(path for root in ROOTS for path in root.rglob("*.py"))
PACKAGES = sorted(path for root in ROOTS for path in (root / "spanloom").iterdir() if (path / "__init__.py").exists())
FOLDERS = sorted({path.parent for path in MODULES})
MOST_LINES = 400
#: Where a release's number could be repeated, but for the changelog's headings and what `make lock` writes.
REPEATING = (
    "engine/**/*.py",
    "stores/**/*.py",
    "worker/**/*.py",
    "docker-compose.yml",
    "deploy/**/*",
    ".github/**/*.yml",
)
MOST_MODULES = 15  # of one folder, beside its __init__.py


def _name(path: Path) -> str:
    """The name under which the module at `path` is imported."""
    (root,) = (root for root in ROOTS if path.is_relative_to(root))
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_packages_are_found_where_the_project_says() -> None:
    assert [path.name for path in PACKAGES] == ["engine", "stores", "cli", "testing", "worker"]


def test_the_namespace_has_no_init_module() -> None:
    assert [root / "spanloom" / "__init__.py" for root in ROOTS if (root / "spanloom" / "__init__.py").exists()] == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_every_package_tells_that_it_is_typed(package: Path) -> None:
    assert (package / "py.typed").exists()


@pytest.mark.parametrize("module", MODULES, ids=_name)
def test_a_module_is_small_and_begins_with_what_it_is_for(module: Path) -> None:
    lines = module.read_text().splitlines()
    assert len(lines) <= MOST_LINES, f"{module} has {len(lines)} lines; split it by responsibility"
    if lines:
        assert lines[0].startswith('"""'), f"{module} does not begin with what it is responsible for"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_a_folder_holds_few_modules(folder: Path) -> None:
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MOST_MODULES, f"{folder} has {len(modules)} modules; make rooms in it"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_every_public_name_of_a_package_is_there(package: Path) -> None:
    module = importlib.import_module(_name(package / "__init__.py"))
    names: list[str] = getattr(module, "__all__", [])
    assert [name for name in names if not hasattr(module, name)] == []
    assert [name for name, times in Counter(names).items() if times > 1] == []


def test_no_module_file_is_loaded_under_two_names() -> None:
    for path in MODULES:
        if "migrations" not in path.parts:  # those run only inside Alembic
            importlib.import_module(_name(path))
    files: dict[str, set[str]] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(module, ModuleType) and file and any(Path(file).is_relative_to(root) for root in ROOTS):
            files.setdefault(file, set()).add(name)
    assert len(files) > len(PACKAGES)
    assert {path: names for path, names in files.items() if len(names) > 1} == {}


def _imports(tree: ast.AST, names: set[str]) -> set[str]:
    """Which of the modules `names` are imported anywhere below `tree`, but where only a type checker looks."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.Import():
                found |= {alias.name for alias in node.names} & names
            case ast.ImportFrom(module=str(module)):
                # A name of a package may be a module of it; if it is none, the package itself is meant.
                inner = {f"{module}.{alias.name}" for alias in node.names}
                found |= inner & names if inner <= names else (inner | {module}) & names
        found |= _imports(node, names)
    return found


def _circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """The modules that import each other, directly or through others."""

    def reachable(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            new = imports[waiting.pop()] - found
            found |= new
            waiting += new
        return found

    reached = {name: reachable(name) for name in imports}
    circles = {tuple(sorted(other for other in found if name in reached[other])) for name, found in reached.items()}
    return [list(circle) for circle in sorted(circles) if circle]


def test_no_modules_import_each_other() -> None:
    names = {_name(path): path for path in MODULES if "migrations" not in path.parts}
    imports = {name: _imports(ast.parse(path.read_text()), set(names)) for name, path in names.items()}
    assert sum(map(len, imports.values())) > len(names)
    assert _circles(imports) == []


def test_a_circle_of_imports_is_found() -> None:
    source = "if TYPE_CHECKING:\n    import d\ndef f():\n    from p import c\n    import b\n"
    assert _imports(ast.parse(source), {"b", "d", "p", "p.c"}) == {"b", "p.c"}
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}, "e": {"a"}}) == [["b", "c"], ["d"]]


def test_imports_go_from_the_outside_in() -> None:
    ran = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("group", ["spanloom.stores", "spanloom.workers"])
def test_every_plug_in_that_the_project_names_can_be_loaded(group: str) -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    for target in project["project"]["entry-points"][group].values():
        module, _, name = target.partition(":")
        assert hasattr(importlib.import_module(module), name), f"{target} is not there"


def test_the_version_stands_in_one_place() -> None:
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    repeats = re.compile(rf"(spanloom|version|image|tag)\b[^\n]{{0,20}}[:= \"']v?{re.escape(version)}\b", re.IGNORECASE)
    files = [path for pattern in REPEATING for path in PROJECT.glob(pattern) if path.is_file()]
    assert len(files) > len(MODULES)
    assert [path for path in files if repeats.search(path.read_text())] == []


def test_the_lock_file_is_that_of_the_project_as_it_stands() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    lock = tomllib.loads((PROJECT / "uv.lock").read_text())
    (ours,) = (package for package in lock["package"] if package["name"] == "spanloom")
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    locked = {(one["name"], SpecifierSet(one.get("specifier", ""))) for one in ours["metadata"]["requires-dist"]}

    assert ours["version"] == project["version"], "run `make lock`"
    assert SpecifierSet(lock["requires-python"]) == SpecifierSet(project["requires-python"]), "run `make lock`"
    required = [Requirement(one) for one in wanted]
    assert locked == {(canonicalize_name(one.name), one.specifier) for one in required}, "run `make lock`"


def test_the_lock_file_names_nothing_but_the_public_index() -> None:
    lock = tomllib.loads((PROJECT / "uv.lock").read_text())
    sources = [package["source"] for package in lock["package"]]
    files = [file for one in lock["package"] for file in (one.get("sdist"), *one.get("wheels", ())) if file]
    assert [one for one in sources if one not in ({"registry": "https://pypi.org/simple"}, {"editable": "."})] == []
    assert len(files) > len(sources)
    assert [file for file in files if not file["url"].startswith("https://files.pythonhosted.org/packages/")] == []


def test_other_threads_are_looked_at_in_one_module() -> None:
    looking = [path.name for path in MODULES if re.search(r"sys\._current_(frames|exceptions)", path.read_text())]
    assert looking == ["thread_stacks.py"]  # whose calls can't deadlock
