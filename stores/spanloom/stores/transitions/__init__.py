"""The state machine of executions and node runs, written once over a `Transaction`, without dialect or driver."""
