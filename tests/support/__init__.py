"""Shared parts of the tests, one kind in each module."""
