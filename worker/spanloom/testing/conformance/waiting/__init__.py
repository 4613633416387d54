"""Timers, children and mapped items."""
