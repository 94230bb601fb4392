"""The kinds of events, and groups of them that a reader looks for together."""

from __future__ import annotations

KINDS = (
    *("started", "resumed", "retry", "succeeded", "incomplete", "dead", "cancelled", "paused", "drained", "yielded"),
    *("asleep", "stalled", "lost", "ordered", "worker_started", "worker_stopped"),
)
#: The ends of a run.
ENDS = ("succeeded", "incomplete", "dead", "cancelled")
GROUPS = {
    "failures": ("retry", "incomplete", "dead", "stalled", "lost"),
    "ends": ENDS,
    "orders": ("ordered", "cancelled"),
    "workers": ("worker_started", "worker_stopped", "drained", "lost", "resumed"),
}
