"""Shared parts of the tests, one kind to a module."""
