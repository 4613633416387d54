"""A census of Python's standard library: a node per package parses its syntax trees, a wide join adds them up.

`make demo` runs it with all it needs (see demo.py). By hand: `spanloom worker census:engine` in this directory.
"""

from __future__ import annotations

import ast
import os
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from spanloom.engine import NodeContext, RetryPolicy, WorkflowBuilder, WorkflowEngine

FLAKY = "json"  # the package whose first two reads fail, to show what a retry looks like


class Library(BaseModel):
    """What an execution is started with: where the library is, and where the report goes."""

    root: Path
    report: Path


class Function(BaseModel):
    name: str
    lines: int


class Tally(BaseModel):
    """What was counted in one package, or in all of them."""

    files: int = 0
    lines: int = 0
    classes: int = 0
    functions: int = 0
    coroutines: int = 0
    longest: Function | None = None
    imports: dict[str, int] = {}


class Census(BaseModel):
    total: Tally
    packages: dict[str, Tally]


class Ranking(BaseModel):
    total: Tally
    packages: list[tuple[str, Tally]]  # by lines
    functions: list[Function]  # the longest of each package, by lines
    imports: list[tuple[str, int]]  # by how often they are imported


census = WorkflowBuilder("census", input=Library, name="Census of the standard library")


@census.registry.node("count")
def count(library: Library, ctx: NodeContext) -> Tally:
    """Parse the files that the node's config names, and count what is in them."""
    if ctx.attempt <= ctx.config.get("failing_reads", 0):
        raise OSError(f"read {ctx.attempt} of {ctx.node_id} fails on purpose")
    counted = Counter[str]()
    imports = Counter[str]()
    longest: Function | None = None
    paths = sorted(library.root.glob(ctx.config["files"]))
    with ctx.span("parse", files=len(paths)):
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
    ctx.log.info("counted", files=counted["files"], lines=counted["lines"])
    return Tally(
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


def _packages(root: Path) -> Iterator[tuple[str, str]]:
    """Yield node ids and the files they stand for: each package, and single modules by their first letter.

    Without the library's own tests, which not every installation has.
    """
    for package in sorted(root.glob("[a-z]*/__init__.py")):
        if package.parent.name != "test":
            yield package.parent.name, f"{package.parent.name}/**/*.py"
    for initial in sorted({module.name[0] for module in root.glob("*.py")}):
        yield f"modules-{initial}", f"{initial}*.py"


counts = [
    census.add(
        package,
        "count",
        config={"files": files, "failing_reads": 2} if package == FLAKY else {"files": files},
        retry=RetryPolicy(max_attempts=3, delay=0.3),
    )
    for package, files in _packages(Path(sysconfig.get_path("stdlib")))
]


@census.node(inputs=counts)
def merge(packages: dict[str, Tally]) -> Census:
    imports = Counter[str]()
    for tally in packages.values():
        imports.update(tally.imports)
    sums = {
        field: sum(getattr(tally, field) for tally in packages.values())
        for field in ("files", "lines", "classes", "functions", "coroutines")
    }
    return Census(total=Tally.model_validate({**sums, "imports": imports}), packages=packages)


@census.node(inputs=merge)
def rank(merged: Census) -> Ranking:
    longest = [
        Function(name=f"{package}: {tally.longest.name}", lines=tally.longest.lines)
        for package, tally in merged.packages.items()
        if tally.longest
    ]
    return Ranking(
        total=merged.total,
        packages=sorted(merged.packages.items(), key=lambda item: item[1].lines, reverse=True),
        functions=sorted(longest, key=lambda function: function.lines, reverse=True),
        imports=Counter(merged.total.imports).most_common(),
    )


@census.node(inputs={"library": census.input, "ranking": rank})
def report(library: Library, ranking: Ranking) -> str:
    """Write the report to disk and return its path."""
    total = ranking.total
    columns = ("files", "lines", "classes", "functions", "coroutines")
    rows = [
        f"| {name} | {' | '.join(f'{getattr(tally, column):,}' for column in columns)} |"
        for name, tally in ranking.packages
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


engine = WorkflowEngine([census], store=os.environ.get("SPANLOOM_STORE_URL", "sqlite:///census.db"))

if __name__ == "__main__":
    import demo

    sys.exit(demo.main())
