"""Sinks: what a job writes outside of the database, part by part, each committed with its batch."""
