"""The interface of the execution store to engine and workers: the port, its requests, models and states."""
