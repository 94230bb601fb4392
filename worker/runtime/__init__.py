"""The worker process: fetcher, executor, completer, leases, limiter, scheduler, rescuer, pruner."""
