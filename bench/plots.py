"""Draws the pictures of `make bench-scale`: SVG that is the same for the same figures, on light and on dark paper.

`plots.py DIRECTORY` reads what `bench/scale.py --json` writes from stdin. It is run by an interpreter that has
matplotlib (`.venv-plots`), and takes nothing from the rest of the bench.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot, ticker  # after that: pyplot looks at the backend when it is imported

_GREY = "#808080"  # is read on white and on black
_COLOURS = ("#3b82c4", "#d9772b", "#3f9e62", "#a865b5")
_MARKERS = ("o", "s", "^", "D")
_SETTINGS = {
    "svg.hashsalt": "spanloom",
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _GREY),
    "grid.color": _GREY,
    "grid.alpha": 0.25,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def main() -> None:
    """Draw each curve that has panels into a file of its name."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    mpl.rcParams.update(_SETTINGS)
    for name, curve in json.load(sys.stdin).items():
        if curve["panels"]:
            _draw(curve["panels"], directory / f"{name}.svg")


def _draw(panels: list[dict[str, Any]], path: Path) -> None:
    figure, all_axes = pyplot.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 3.2), squeeze=False, layout="constrained"
    )
    for panel, axes in zip(panels, all_axes[0], strict=True):
        for number, (name, points) in enumerate(panel["series"].items()):
            style = {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}
            if points:
                axes.plot(*zip(*points, strict=True), label=name, markersize=4, **style)
        axes.set(title=panel["title"], xlabel=panel["x"], ylabel=panel["y"])
        _scale(axes, panel)
        if len(panel["series"]) > 1:
            axes.legend()
    figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def _scale(axes: Any, panel: dict[str, Any]) -> None:
    """Begin the vertical axis at 0, put a tick at each point of a logarithmic one, and write numbers in full."""
    points = [point for series in panel["series"].values() for point in series]
    axes.set_ylim(0, max((figure for _, figure in points), default=1.0) * 1.1)
    if panel["log_x"]:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.FixedLocator(sorted({place for place, _ in points})))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.10g}"))


if __name__ == "__main__":
    main()
