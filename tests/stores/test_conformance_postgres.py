"""The conformance suite over Postgres: its hot transitions as PL/pgSQL functions, and all of them in Python.

Those in Python are the ones that the suite tries over SQLite: over this database a sixth of it is run in every run, and
all of it in `make torture`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.stores import PostgresExecutionStore
from spanloom.testing.conformance import StoreConformance
from support.stores import truncate

FORMS = [pytest.param(True, id="accelerated"), pytest.param(False, id="python", marks=pytest.mark.one_in(6, of="file"))]


@pytest.fixture(scope="module")
def opened(module_postgres_url: str) -> Iterator[dict[bool, ExecutionStore]]:
    """Both forms, which stay open side by side: the plans of a connection that is new cost more than most tests."""
    stores = {form: PostgresExecutionStore(module_postgres_url, accelerated=form) for form in (True, False)}
    for store in stores.values():
        store.open()
    yield stores
    for store in stores.values():
        store.close()


@pytest.mark.usefixtures("no_transaction_left")
class TestPostgres(StoreConformance):
    @pytest.fixture(params=FORMS)
    def store(self, request: pytest.FixtureRequest, opened: dict[bool, ExecutionStore]) -> ExecutionStore:
        return truncate(opened[request.param])
