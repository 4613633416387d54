"""Lists and counts of executions, and the paging of every list."""
