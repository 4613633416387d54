"""A census of Python's standard library: a node is mapped over its packages, a child ranks what they hold.

`make demo` runs it with all it needs (see demo.py). By hand: `spanloom worker census:engine` in this directory.
"""

from __future__ import annotations

import ast
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from spanloom.engine import MapOver, NodeContext, RetryPolicy, WorkflowBuilder, WorkflowEngine

FLAKY = "json"  # the package whose first two reads fail, to show what a retry looks like


class Library(BaseModel):
    """What an execution is started with: where the library is, and where the report goes."""

    root: Path
    report: Path


class Package(BaseModel):
    """A package, or the single modules of one initial letter: a pattern for its files."""

    name: str
    files: str


class Parcel(BaseModel):
    """What one item of the mapped node is given."""

    root: Path
    package: Package


class Function(BaseModel):
    name: str
    lines: int


class PackageCount(BaseModel):
    """What was counted in one package, or in all of them."""

    name: str
    files: int = 0
    lines: int = 0
    classes: int = 0
    functions: int = 0
    coroutines: int = 0
    longest: Function | None = None
    imports: dict[str, int] = {}


class Census(BaseModel):
    total: PackageCount
    packages: list[PackageCount]


class Ranking(BaseModel):
    packages: list[PackageCount]  # by lines
    functions: list[Function]  # the longest of each package, by lines
    imports: list[tuple[str, int]]  # by how often they are imported


ranking = WorkflowBuilder("ranking", input=Census, name="What is largest, longest and most used")
census = WorkflowBuilder("census", input=Library, name="Census of the standard library")


@census.node
def packages(library: Library) -> list[Package]:
    """List what to count. Without the library's own tests, which not every installation has."""
    inits = sorted(library.root.glob("[a-z]*/__init__.py"))
    found = [Package(name=one.parent.name, files=f"{one.parent.name}/**/*.py") for one in inits]
    initials = sorted({module.name[0] for module in library.root.glob("*.py")})
    modules = [Package(name=f"modules-{initial}", files=f"{initial}*.py") for initial in initials]
    return [package for package in found if package.name != "test"] + modules


@census.node(
    inputs=packages,
    map=MapOver(over="nodes.packages", max_concurrency=8),
    mapping={"root": "input.root", "package": "item"},
    retry=RetryPolicy(max_attempts=3, delay=0.3),
)
def count(parcel: Parcel, ctx: NodeContext) -> PackageCount:
    """Parse the files of one package, and count what is in them."""
    name = parcel.package.name
    if name == FLAKY and ctx.attempt <= 2:
        raise OSError(f"read {ctx.attempt} of {name} fails on purpose")
    counted = Counter[str]()
    imports = Counter[str]()
    longest: Function | None = None
    paths = sorted(parcel.root.glob(parcel.package.files))
    with ctx.span(f"parse {name}", files=len(paths)):
        for path in paths:
            source = path.read_bytes()
            try:
                tree = ast.parse(source)
            except (SyntaxError, ValueError) as error:  # the library keeps a few broken files, to test its own tools
                ctx.log.warning("not parsed", file=path.name, reason=str(error))
                continue
            counted.update(files=1, lines=source.count(b"\n"))
            for node in ast.walk(tree):
                counted[type(node).__name__] += 1
                imports.update(_imported(node))
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or node.lineno) - node.lineno + 1
                    if longest is None or lines > longest.lines:
                        longest = Function(name=f"{path.stem}.{node.name}", lines=lines)
    ctx.log.info("counted", package=name, files=counted["files"], lines=counted["lines"])
    return PackageCount(
        name=name,
        files=counted["files"],
        lines=counted["lines"],
        classes=counted["ClassDef"],
        functions=counted["FunctionDef"] + counted["AsyncFunctionDef"],
        coroutines=counted["AsyncFunctionDef"],
        longest=longest,
        imports=imports,
    )


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module.partition(".")[0]


@census.node(inputs=count)
def merge(counts: list[PackageCount]) -> Census:
    imports = Counter[str]()
    for one in counts:
        imports.update(one.imports)
    sums = {
        field: sum(getattr(one, field) for one in counts)
        for field in ("files", "lines", "classes", "functions", "coroutines")
    }
    return Census(total=PackageCount.model_validate({"name": "all", **sums, "imports": imports}), packages=counts)


@census.node(inputs=merge.when("total.files == `0`"))
def nothing_found(merged: Census) -> str:
    """Say so. Where the library is, this branch is skipped."""
    return "there is no library here"


@ranking.node
def largest(merged: Census) -> list[PackageCount]:
    return sorted(merged.packages, key=lambda one: one.lines, reverse=True)


@ranking.node
def longest(merged: Census) -> list[Function]:
    found = [
        Function(name=f"{one.name}: {one.longest.name}", lines=one.longest.lines)
        for one in merged.packages
        if one.longest
    ]
    return sorted(found, key=lambda function: function.lines, reverse=True)


@ranking.node
def most_imported(merged: Census) -> list[tuple[str, int]]:
    return Counter(merged.total.imports).most_common()


rank = census.child(
    "rank",
    ranking,
    inputs=merge.when("total.files > `0`"),
    output="{packages: largest, functions: longest, imports: most_imported}",
)


@census.node(inputs={"library": census.input, "merged": merge, "ranking": rank})
def report(library: Library, merged: Census, ranking: Ranking) -> str:
    """Write the report to disk and return its path."""
    total = merged.total
    columns = ("files", "lines", "classes", "functions", "coroutines")
    rows = [
        f"| {one.name} | {' | '.join(f'{getattr(one, column):,}' for column in columns)} |" for one in ranking.packages
    ]
    longest = [f"- {function.name}, {function.lines:,} lines" for function in ranking.functions[:5]]
    imported = [f"- {module}, {times:,} times" for module, times in ranking.imports[:10]]
    lines = [
        f"# Python {sys.version_info.major}.{sys.version_info.minor}: {total.files:,} files, {total.lines:,} lines",
        "",
        f"{total.classes:,} classes, {total.functions:,} functions, of them {total.coroutines:,} coroutines.",
        "",
        f"| package | {' | '.join(columns)} |",
        "|---|---:|---:|---:|---:|---:|",
        *rows,
        *("", "## The longest functions", "", *longest),
        *("", "## The most imported modules", "", *imported),
    ]
    library.report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(library.report)


engine = WorkflowEngine([census, ranking], store=os.environ.get("SPANLOOM_STORE_URL", "sqlite:///census.db"))

if __name__ == "__main__":
    import demo

    sys.exit(demo.main())
