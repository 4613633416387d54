"""Leases, sweeps and lost jobs."""
