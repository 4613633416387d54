"""Control, retries, replays, manual results and purges."""
