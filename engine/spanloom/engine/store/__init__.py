"""The execution store as the engine and the workers see it: the port, its requests, models and states."""
