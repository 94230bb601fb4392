"""Whole applications in one file, which tests/test_examples.py runs."""
