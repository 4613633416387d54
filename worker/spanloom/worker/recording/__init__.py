"""The end of node runs: their outcomes are recorded in the store, and passed on to those who wait for them."""
