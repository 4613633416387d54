"""The shared part of all SQL stores: reads and infrequent writes, and the statements of transactions."""
