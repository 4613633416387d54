"""The state machine of executions and node runs, written once over a `Transaction`. Knows no dialect and no driver."""
