"""The script that Alembic runs, over the connection and the schema of the call of `upgrade`."""

from __future__ import annotations

from alembic import context

from spanloom.stores.migrations import VERSION_TABLE
from spanloom.stores.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    version_table_schema=context.config.attributes["schema"],
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
