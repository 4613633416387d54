"""The worker's side of the queue: fetching jobs, RQ's registries, notifications."""
