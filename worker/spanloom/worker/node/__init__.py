"""The pipeline of node runs: waves, call, time limit, outcome."""
