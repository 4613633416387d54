"""Following executions: waiting for their end, streams of their events."""
