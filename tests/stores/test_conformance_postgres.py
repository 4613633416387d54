"""The conformance suite over Postgres: its hot transitions as PL/pgSQL functions, and all of them in Python.

Those in Python are the ones that the suite tries over SQLite: over this database a third of it is run in every run, and
all of it in `make torture`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from spanloom.engine.store.port import ExecutionStore
from spanloom.stores import PostgresExecutionStore
from spanloom.testing.conformance import StoreConformance
from support.stores import truncate

FORMS = [pytest.param(True, id="accelerated"), pytest.param(False, id="python", marks=pytest.mark.one_in(3, of="file"))]


@pytest.fixture(scope="module", params=FORMS)
def opened(request: pytest.FixtureRequest, module_postgres_url: str) -> Iterator[ExecutionStore]:
    store = PostgresExecutionStore(module_postgres_url, accelerated=request.param)
    store.open()
    yield store
    store.close()


@pytest.mark.usefixtures("no_transaction_left")
class TestPostgres(StoreConformance):
    @pytest.fixture
    def store(self, opened: ExecutionStore) -> ExecutionStore:
        return truncate(opened)
