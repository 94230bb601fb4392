"""What operators see: the mirror in Redis, and the log."""
