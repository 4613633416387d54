"""A pipeline that writes no log line of its own for what an error of its block has already ended."""

from __future__ import annotations

from types import TracebackType

import psycopg

__all__ = ["QuietPipeline"]


class QuietPipeline(psycopg.Pipeline):
    """A pipeline whose block's own error is all that is raised; psycopg's logs the abort that follows it."""

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """Leave the block, or its outermost level the pipeline mode."""
        try:
            super().__exit__(None, None, None)
        except psycopg.Error:
            if exc_val is None:
                raise
