"""Faults of the world around the program, each run for real with processes."""
