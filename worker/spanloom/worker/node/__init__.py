"""The pipeline of one node run: call, time limit, outcome, record."""
