"""The worker as a process: signals, supervision, health, logging and SDK set-up."""
