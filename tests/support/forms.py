"""Two stores on one Postgres database, one of each form of the hot transitions, which take turns."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from spanloom.engine.store.port import ExecutionStore
from spanloom.stores import PostgresExecutionStore

__all__ = ["FORMS", "MixedForms", "open_form"]

FORMS = ("functions", "python", "mixed")


@ExecutionStore.register
class MixedForms:
    """The store that runs functions and the one that runs Python, as one: each call goes to the next of the two."""

    def __init__(self, functions: Any, python: Any) -> None:
        self.stores = functions, python
        self._turns = itertools.cycle(self.stores)
        self._thread = threading.local()

    def __getattr__(self, name: str) -> Any:
        pinned = getattr(self._thread, "pinned", None)
        return getattr(next(self._turns) if pinned is None else pinned, name)

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Make the calls of this thread one transaction, of one of the two stores."""
        if getattr(self._thread, "pinned", None) is not None:
            yield
            return
        self._thread.pinned = next(self._turns)
        try:
            with self._thread.pinned.transaction():
                yield
        finally:
            self._thread.pinned = None

    def close(self) -> None:
        """Give up the connections of both."""
        for store in self.stores:
            store.close()


@contextmanager
def open_form(form: str, url: str) -> Generator[Any]:
    """Open the store of one of FORMS on this database for as long as the block lasts."""
    functions, python = PostgresExecutionStore(url), PostgresExecutionStore(url, accelerated=False)
    forms = {"functions": functions, "python": python, "mixed": MixedForms(functions, python)}
    yield forms[form]
    functions.close()
    python.close()
