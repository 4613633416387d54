"""Limits: the bounds of data that users and handlers give; docs/configuration.md has them in one table.

Data that identifies something, or that a program reads, is refused above its bound. A text that describes something
to a person is shortened, with a mark that states how much was left out.
"""

from __future__ import annotations

__all__ = [
    "MAX_CLAIM_BYTES",
    "MAX_CONFIG_DEPTH",
    "MAX_CONTROL_CHARACTERS",
    "MAX_DEFINITION_BYTES",
    "MAX_DEFINITION_VALUES",
    "MAX_DEPTH",
    "MAX_EDGES",
    "MAX_ERROR_CHARACTERS",
    "MAX_EXPRESSIONS_SECONDS",
    "MAX_EXPRESSIONS_STEPS",
    "MAX_EXPRESSION_BYTES",
    "MAX_EXPRESSION_CHARACTERS",
    "MAX_EXPRESSION_DEPTH",
    "MAX_EXPRESSION_SECONDS",
    "MAX_EXPRESSION_STEPS",
    "MAX_ITEMS",
    "MAX_LINES",
    "MAX_LINE_CHARACTERS",
    "MAX_METADATA_CHARACTERS",
    "MAX_METADATA_KEY",
    "MAX_METADATA_PAIRS",
    "MAX_METADATA_VALUE",
    "MAX_NAME",
    "MAX_NODES",
    "MAX_NOTES",
    "MAX_PROBLEMS_SHOWN",
    "MAX_SHOWN_BYTES",
    "MAX_SPAN_NAME",
    "MAX_STATUS_CHARACTERS",
    "MAX_TRACEBACK_CHARACTERS",
    "shortened",
]

# ---- definitions ----

MAX_DEFINITION_BYTES = 8 * 1024 * 1024  #: of a definition as JSON or YAML
MAX_DEFINITION_VALUES = 300_000  #: keys, lists, objects and scalars of a definition, a YAML alias as all it stands for
MAX_CONFIG_DEPTH = 100  #: levels of lists and objects in a node's config
MAX_NODES = 25_000
MAX_EDGES = 100_000
MAX_PROBLEMS_SHOWN = 100  #: of a definition's problems in one message
MAX_ITEMS = 10_000  #: elements that a node can be mapped over

# ---- expressions ----

MAX_EXPRESSION_CHARACTERS = 4_000  #: of one expression
MAX_EXPRESSION_DEPTH = 60  #: how deep its parts may be nested
MAX_EXPRESSION_STEPS = 2_000_000  #: of one evaluation: parts evaluated, each element of a projection counts
MAX_EXPRESSION_SECONDS = 5.0  #: of one evaluation
MAX_EXPRESSION_BYTES = 64 * 1024 * 1024  #: of a value written out as JSON, also of one that an operation goes through
MAX_EXPRESSIONS_STEPS = 20_000_000  #: of all evaluations for one node together
MAX_EXPRESSIONS_SECONDS = 30.0  #: of all evaluations for one node together

# ---- payloads ----

MAX_SHOWN_BYTES = 16 * 1024 * 1024  #: of the payloads in one document that a command prints

#: Of the inputs that come with a claim. A node's larger inputs are read later, in a call of their own, after their size
#: was compared with the settings' `join_limit_bytes`.
MAX_CLAIM_BYTES = 4 * 1024 * 1024

MAX_DEPTH = 500  #: levels; more could be written on a shallow stack and then not be read on a deep one

# ---- identifying texts ----

MAX_NAME = 1_000  #: characters of a name, an actor, and of other one-line texts
MAX_NOTES = 10_000  #: characters of change notes, and of the reason of a control call
MAX_METADATA_PAIRS = 100
MAX_METADATA_KEY = 200  #: characters
MAX_METADATA_VALUE = 2_000  #: characters
MAX_METADATA_CHARACTERS = 50_000  #: of all keys and values together
MAX_CONTROL_CHARACTERS = MAX_NOTES

# ---- describing texts ----

MAX_LINES = 5_000  #: log lines of one attempt; the same number of its spans is kept
MAX_LINE_CHARACTERS = 10_000  #: of a line's message, of its fields as JSON, and of a span's attributes as JSON
MAX_SPAN_NAME = 500  #: characters
MAX_ERROR_CHARACTERS = 4_000  #: of an error's message
MAX_TRACEBACK_CHARACTERS = 16_000
MAX_STATUS_CHARACTERS = 500  #: of a span's status


def shortened(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters; a longer one ends with the number of those that were left out.

    >>> shortened("a" * 1000, 50)
    'aaaaaaaaaaaaaaaaaaaaa… (979 characters left out)'
    """
    if len(text) <= limit:
        return text
    kept = max(limit - len(_mark(len(text))), 0)
    return text[:kept] + _mark(len(text) - kept)


def _mark(left_out: int) -> str:
    return f"… ({left_out:,} characters left out)"
