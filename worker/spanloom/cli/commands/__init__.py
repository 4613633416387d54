"""The commands of `spanloom`, one module for each group."""
