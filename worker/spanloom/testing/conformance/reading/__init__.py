"""Reads, versions, telemetry, payloads and transactions."""
