"""Throttles: what a walk waits for between two batches. Give one to `@job(throttle=...)`, or write your own.

`CustomThrottle` takes a function; a class of one's own implements `Throttle`, gets a `ThrottleContext`, and returns a
`Wait`.
"""

from worker.batch.throttle import Throttle, ThrottleContext, Wait
from worker.batch.throttles import (
    CustomThrottle,
    ForcedCheckpoints,
    RowsPerSecond,
    ServerMetric,
    TimeWindow,
    WalRate,
)

__all__ = [
    "CustomThrottle",
    "ForcedCheckpoints",
    "RowsPerSecond",
    "ServerMetric",
    "Throttle",
    "ThrottleContext",
    "TimeWindow",
    "Wait",
    "WalRate",
]
