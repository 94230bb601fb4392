"""The queue: arq's keys in Redis, leases, orders, cron, and the client."""
