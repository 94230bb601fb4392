"""Benchmarks against hand-written code and other queues, in the same run; each prints one table."""
