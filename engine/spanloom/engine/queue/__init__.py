"""Node jobs on Redis: messages, keys, clients, outages, the epoch of the Redis data set."""
