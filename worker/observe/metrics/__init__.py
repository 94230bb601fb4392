"""Metrics for Prometheus, and the health of a worker, over HTTP.

`definitions` is the table of all metrics. `observer` counts the events of a worker in plain numbers, `servers` reads
queues and outbox in the background, and a `Snapshot` of both is what `exposition` renders and what the processes of one
supervisor send to it.
"""
