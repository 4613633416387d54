"""Starts, claims, records and joins."""
