"""The export of nodes' lines as OpenTelemetry logs, where an SDK is set up for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from opentelemetry import _logs as otel_logs
from opentelemetry._logs import Logger, SeverityNumber
from opentelemetry.context import Context

from spanloom.engine.limits import shortened
from spanloom.engine.store.requests import Claim, LogLine
from spanloom.engine.telemetry.tracing import SCOPE

__all__ = ["LogExport"]

_MAX_FIELDS = 50
_MAX_VALUE = 1_000
_SEVERITIES = {
    "debug": SeverityNumber.DEBUG,
    "info": SeverityNumber.INFO,
    "warning": SeverityNumber.WARN,
    "error": SeverityNumber.ERROR,
    "critical": SeverityNumber.FATAL,
}
_NAMES = {"exception": "exception.stacktrace"}  #: our fields by their names in the semantic conventions


class LogExport:
    """An emitter of log lines through the logger provider of this process."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger

    @classmethod
    def configured(cls) -> LogExport | None:
        """Return an export if a logger provider is set up, None otherwise."""
        provider = otel_logs.get_logger_provider()
        if isinstance(provider, otel_logs.NoOpLoggerProvider) or type(provider).__name__ == "ProxyLoggerProvider":
            return None  # the API's own placeholder: no provider is set up
        return cls(provider.get_logger(SCOPE))

    def emit(self, claim: Claim, line: LogLine, fields: Mapping[str, Any], context: Context) -> None:
        """Emit one line of an attempt, within the trace of `context`."""
        header, node = claim.header, claim.node
        attributes: dict[str, str | bool | int | float] = {
            "spanloom.workflow.id": header.workflow_id,
            "spanloom.execution.id": header.execution_id,
            "spanloom.node.id": node.node_id,
            "spanloom.node.item": node.item,
            "spanloom.node.attempt": node.attempt,
        }
        for name, value in tuple(fields.items())[:_MAX_FIELDS]:
            attributes[_NAMES.get(name, str(name))] = _value(name, value)
        self._logger.emit(
            timestamp=int(line.at.timestamp() * 1_000_000) * 1_000,
            context=context,
            severity_number=_SEVERITIES.get(line.level, SeverityNumber.INFO),
            severity_text=line.level.upper(),
            body=line.message,
            attributes=attributes,
        )


def _value(name: str, value: Any) -> str | bool | int | float:
    if isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if name == "exception" else shortened(text, _MAX_VALUE)
