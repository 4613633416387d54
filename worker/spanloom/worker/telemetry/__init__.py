"""What a worker stores and exports of its node runs: logs, spans, metrics."""
