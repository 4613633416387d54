"""Handlers in processes of their own, which a timeout can end: the pool in the worker, and the process itself."""
