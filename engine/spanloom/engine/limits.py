"""Limits: the bounds of data that users and handlers give; docs/configuration.md has them in one table.

Data that identifies something, or that a program reads, is refused above its bound. A text that describes something
to a person is shortened, with a mark that states how much was left out.
"""

from __future__ import annotations

__all__ = [
    "MAX_ATTEMPT_CHARACTERS",
    "MAX_BATCH_BYTES",
    "MAX_CLAIM_BYTES",
    "MAX_CONFIG_DEPTH",
    "MAX_DEFINITION_BYTES",
    "MAX_DEFINITION_VALUES",
    "MAX_DEPTH",
    "MAX_EDGES",
    "MAX_ENDPOINT_CONNECTIONS",
    "MAX_ENDPOINT_REQUEST_BYTES",
    "MAX_ENDPOINT_SECONDS",
    "MAX_ERROR_CHARACTERS",
    "MAX_EXPRESSIONS_CHARACTERS",
    "MAX_EXPRESSIONS_SECONDS",
    "MAX_EXPRESSIONS_STEPS",
    "MAX_EXPRESSION_BYTES",
    "MAX_EXPRESSION_CHARACTERS",
    "MAX_EXPRESSION_DEPTH",
    "MAX_EXPRESSION_SECONDS",
    "MAX_EXPRESSION_STEPS",
    "MAX_GIVEN_CHARACTERS",
    "MAX_IDEMPOTENCY_KEY",
    "MAX_ITEMS",
    "MAX_LINES",
    "MAX_LINE_CHARACTERS",
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
    "end_of",
    "shortened",
]

# ---- definitions ----

MAX_DEFINITION_BYTES = 8 * 1024 * 1024  #: of a definition as JSON or YAML
MAX_DEFINITION_VALUES = 300_000  #: keys, lists, objects and scalars of a definition, a YAML alias as all it stands for
MAX_CONFIG_DEPTH = 100  #: levels of lists and objects in a node's config
MAX_NODES = 25_000
MAX_EXPRESSIONS_CHARACTERS = 2 * 1024 * 1024  #: of all expressions of a definition, which are compiled to check them
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

MAX_BATCH_BYTES = 16 * 1024 * 1024  #: of the starts, or of the records, that one call sends together
MAX_GIVEN_CHARACTERS = 64 * 1024 * 1024  #: of an option of a command, from a file or from standard input
MAX_SHOWN_BYTES = 16 * 1024 * 1024  #: of the payloads in one document that a command prints

#: Of the inputs that come with a claim. A node's larger inputs are read later, in a call of their own, after their size
#: was compared with the settings' `join_limit_bytes`.
MAX_CLAIM_BYTES = 4 * 1024 * 1024

MAX_DEPTH = 500  #: levels; more could be written on a shallow stack and then not be read on a deep one

# ---- texts that identify, or that a program reads: refused above the bound ----

MAX_NAME = 1_000  #: characters of a name, a node type, a parameter, an author
MAX_NOTES = 10_000  #: characters of change notes
MAX_IDEMPOTENCY_KEY = 500  #: characters
MAX_METADATA_PAIRS = 64  #: of one execution
MAX_METADATA_KEY = 100  #: characters
MAX_METADATA_VALUE = 500  #: characters

# ---- texts that describe: shortened to the bound ----

MAX_LINES = 5_000  #: log lines of one attempt; the same number of its spans is kept
MAX_LINE_CHARACTERS = 10_000  #: of a line's message, of its fields as JSON, and of a span's attributes as JSON
MAX_ATTEMPT_CHARACTERS = 16 * 1024 * 1024  #: of the lines of one attempt together, and of its spans together
MAX_SPAN_NAME = 500  #: characters
MAX_ERROR_CHARACTERS = 4_000  #: of an error's message
MAX_TRACEBACK_CHARACTERS = 16_000
MAX_STATUS_CHARACTERS = 500  #: of a span's status


# ---- the endpoints of worker processes ----

MAX_ENDPOINT_CONNECTIONS = 16  #: at the same time
MAX_ENDPOINT_REQUEST_BYTES = 16 * 1024  #: of a request's head
MAX_ENDPOINT_SECONDS = 5.0  #: of a connection


def shortened(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters; a longer one ends with the number of those that were left out.

    >>> shortened("a" * 1000, 50)
    'aaaaaaaaaaaaaaaaaaaaaaa… (977 characters left out)'
    """
    if len(text) <= limit:
        return text
    kept = max(limit - len(_mark(len(text))), 0)
    longer = max(limit - len(_mark(len(text) - kept)), 0)  # as its number may have fewer digits
    kept = longer if longer + len(_mark(len(text) - longer)) <= limit else kept
    return text[:kept] + _mark(len(text) - kept)


def end_of(text: str, limit: int) -> str:
    """Return the end of a text, of about `limit` characters; before it stands the number of those left out."""
    if len(text) <= limit:
        return text
    return f"({len(text) - limit:,} characters left out) …{text[-limit:]}"


def _mark(left_out: int) -> str:
    return f"… ({left_out:,} characters left out)"
