"""OpenTelemetry of the engine: traces, spans, metrics and their instruments."""
