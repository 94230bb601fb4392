"""The queue: arq's keys in Redis, leases, operator commands, cron, and the client."""
