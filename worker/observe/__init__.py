"""Observation by operators: the mirror in Redis, and the log."""
