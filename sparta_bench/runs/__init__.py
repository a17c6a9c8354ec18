"""Runs: one experiment, many of them, locks, and what the runs of a process share."""
