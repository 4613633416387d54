"""Definitions of workflows: models, validation, expressions, routing, files, the cache."""
