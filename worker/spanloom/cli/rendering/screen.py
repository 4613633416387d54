"""The screen that drawings are printed on: rich's console, with all text escaped and no markup in it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from spanloom.engine.escaping import escaped

__all__ = ["Screen"]


class Screen(Console):
    """A console on which markup and names of emoji are plain text, and control characters are escaped.

    Cells are escaped before they are laid out, so that a table stays one.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, and escape the text of every segment."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(escaped(segment.text, keep="\n"), segment.style)
