"""What the end-to-end tests share: a whole system, its handlers, and what receives its telemetry."""
