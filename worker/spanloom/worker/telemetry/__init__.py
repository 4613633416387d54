"""The telemetry of a worker's node runs, stored and exported: logs, spans, metrics."""
