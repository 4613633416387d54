"""The texts of a store: identities are kept exactly or refused, log lines and names of spans are repaired."""

from __future__ import annotations

import re
from collections.abc import Iterable

from spanloom.engine.errors import PayloadRejected
from spanloom.engine.store.models import ExecutionFilter
from spanloom.engine.store.requests import StartRequest

__all__ = ["check_exact", "check_filter", "check_start", "fault_of", "storable"]

_SHOWN = 100  # characters of a refused text
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # no database keeps them all


def fault_of(name: str, text: str) -> str | None:
    """Return the sentence that refuses an identity which no store could keep exactly, None if all could.

    An identity is never repaired: two different ones could become the same.

    >>> fault_of("workflow id", "orders") is None
    True
    """
    found = _UNSTORABLE.search(text)
    if found is None:
        return None
    odd = "a NUL" if found[0] == "\x00" else "half of a surrogate pair (of bytes that are not UTF-8)"
    return f"the {name} {text[:_SHOWN]!r} contains {odd}, which no store can keep exactly; use another text"


def check_exact(name: str, *texts: str | None) -> None:
    """Raise PayloadRejected for an identity that no store keeps exactly."""
    for text in texts:
        if text is not None and (fault := fault_of(name, text)) is not None:
            raise PayloadRejected(fault)


def check_start(request: StartRequest) -> None:
    """Raise PayloadRejected for an identity of a start: its workflow, idempotency key or metadata."""
    key, pairs = request.idempotency_key or "", request.metadata
    try:
        identities = (
            "".join((request.workflow_id, key, *pairs, *pairs.values())) if pairs else request.workflow_id + key
        )
    except TypeError:  # one of them is no text
        identities = "\x00"
    if _UNSTORABLE.search(identities) is not None:
        check_exact("workflow id", request.workflow_id)
        check_exact("idempotency key", key)
        _check_metadata(pairs.items())


def check_filter(wanted: ExecutionFilter | None) -> None:
    """Raise PayloadRejected for an identity of a filter."""
    if wanted is not None:
        check_exact("workflow id", wanted.workflow_id)
        _check_metadata(wanted.metadata.items())


def _check_metadata(pairs: Iterable[tuple[str, str]]) -> None:
    for key, value in pairs:
        check_exact("metadata key", key)
        check_exact(f"metadata value of {key!r}", value)


def storable(text: str) -> str:
    """Replace, in a text that does not identify, NUL and halves of surrogate pairs, which databases can't hold."""
    if text.isascii() and "\x00" not in text:
        return text
    return _UNSTORABLE.sub("\ufffd", text)
