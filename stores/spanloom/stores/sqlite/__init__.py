"""The SQLite store, on a file or in memory."""
