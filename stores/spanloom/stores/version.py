"""The version of a store's schema, compared with the one that this release needs."""

from __future__ import annotations

from spanloom.engine.errors import ConfigurationError, StoreNotMigrated
from spanloom.stores.schema import SCHEMA_VERSION

__all__ = ["check_not_newer", "check_version"]


def check_version(where: str, found: str | None) -> None:
    """Raise StoreNotMigrated for a schema that is missing, older or newer. Raises the errors of check_not_newer."""
    check_not_newer(where, found)
    if found != SCHEMA_VERSION:
        raise StoreNotMigrated(where, found, SCHEMA_VERSION)


def check_not_newer(where: str, found: str | None) -> None:
    """Raise StoreNotMigrated for a schema that no migration of this release leads to, as a newer release made it.

    Raises ConfigurationError for the version of another application's schema.
    """
    if found is None:
        return
    if len(found) != len(SCHEMA_VERSION) or not found.isdigit():
        raise ConfigurationError(
            f"the schema of {where} has the Alembic version {found!r}, which is another application's; "
            "give the store a schema of its own, as in ?namespace=orders"
        )
    if found > SCHEMA_VERSION:  # revisions are numbered in order
        raise StoreNotMigrated(where, found, SCHEMA_VERSION)
