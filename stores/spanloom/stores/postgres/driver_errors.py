"""The sorting of Postgres' errors: a value that it never keeps, a refusal that may pass, or a wrong configuration."""

from __future__ import annotations

import psycopg
from sqlalchemy import exc

from spanloom.engine.errors import (
    ConfigurationError,
    PayloadRejected,
    SpanloomError,
    StoreRefused,
    StoreUnavailable,
    Unavailability,
)
from spanloom.stores.postgres.session import pooled_by_transaction
from spanloom.stores.postgres.time_limit import TimeLimitPassed

__all__ = ["MISSING", "cause_of", "sorted_error"]

#: Classes of SQLSTATE by which a statement is refused for what it was given: it would be refused again.
_NEVER = frozenset({"21", "23", "44", "P0"})  # of its rows: a constraint, a trigger that raises
_TOO_ODD = frozenset({"22", "54"})  # of its values: what no column holds, or what is too large

#: Why a statement can't be served now, by SQLSTATE or else by its class. Any other is OTHER: it may pass, too.
_NOT_NOW = {
    "08": Unavailability.AWAY,
    "25006": Unavailability.READ_ONLY,
    "25P03": Unavailability.TIME_LIMIT,  # of an idle transaction
    "25P04": Unavailability.TIME_LIMIT,  # of a transaction
    "28": Unavailability.RIGHTS,
    "3D": Unavailability.SCHEMA,
    "3F": Unavailability.SCHEMA,
    "40": Unavailability.LOCKED,
    "42501": Unavailability.RIGHTS,  # also of the server to a file
    "42": Unavailability.SCHEMA,
    "53": Unavailability.RESOURCES,
    "55": Unavailability.LOCKED,
    "57": Unavailability.AWAY,  # it shuts down, or begins
    "57014": Unavailability.TIME_LIMIT,  # of a statement
    "58": Unavailability.STORAGE,
    "XX": Unavailability.STORAGE,
}

#: A schema, a table or a function is not there: the schema was never made, or is being restored.
MISSING = frozenset({"3F000", "42P01", "42883", "42703", "42704"})
_NO_RIGHT = "42501"
_TOO_LARGE = "invalid memory alloc request size"  # of one value; it has the code of an internal error


def cause_of(error: Exception) -> BaseException:
    """Return the driver's error inside one of SQLAlchemy's."""
    original = error.orig if isinstance(error, exc.DBAPIError) else None
    return error if original is None else original


def sorted_error(error: Exception, where: str, *, opened: bool) -> SpanloomError | None:
    """Return Spanloom's error for a driver's error. None for one that no server caused.

    Before the store was open, a missing right is a mistake of its configuration. Afterwards it may pass: rights are
    being changed.
    """
    cause = cause_of(error)
    reason = str(cause).strip().partition("\n")[0]
    state = getattr(cause, "sqlstate", None) or ""
    if pooled_by_transaction(cause, reason):
        # Unavailable, so that no node fails by it: the next session may be another one.
        return StoreUnavailable(
            f"prepared statements fail at {where} ({reason}): a pooler such as PgBouncer lends a session to many "
            "clients; add ?prepare=false to the store's URL",
            reason=Unavailability.OTHER,
        )
    if isinstance(cause, psycopg.DataError | UnicodeEncodeError) or state[:2] in _TOO_ODD or _TOO_LARGE in reason:
        return PayloadRejected(f"Postgres can't keep a value that it was given: {reason}")
    if state[:2] in _NEVER or (not state and isinstance(cause, psycopg.IntegrityError)):
        return StoreRefused(f"Postgres at {where} refused a statement: {reason}")
    if state == _NO_RIGHT and not opened:
        return ConfigurationError(f"the user of {where} lacks a right that Spanloom needs: {reason}")
    if isinstance(error, exc.InvalidRequestError):  # connections went away faster than the pool could replace them
        return StoreUnavailable(f"Postgres at {where} keeps closing its connections: {reason}")
    if state:
        kind = _NOT_NOW.get(state) or _NOT_NOW.get(state[:2]) or Unavailability.OTHER
        if kind is Unavailability.AWAY:
            return StoreUnavailable(f"Postgres at {where} did not answer: {reason}")
        return StoreUnavailable(f"Postgres at {where} can't serve a statement now ({kind}): {reason}", reason=kind)
    if isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError):
        late = Unavailability.TIME_LIMIT if isinstance(cause, TimeLimitPassed) else Unavailability.AWAY
        return StoreUnavailable(f"Postgres at {where} did not answer: {reason}", reason=late)
    return None
