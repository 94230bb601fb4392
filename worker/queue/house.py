"""What all runs of one worker share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from worker.db.engine import Database
from worker.ledger import Ledger
from worker.middleware import RunHook
from worker.queue.gates import Gates
from worker.queue.hooks import Observer
from worker.queue.lines import Lines
from worker.queue.orders import Orders
from worker.queue.outage import Outage
from worker.queue.store import QueueStore
from worker.queue.turns import Turns
from worker.registry import Registry
from worker.settings import Settings


@dataclass
class House:
    """What all runs of one worker share."""

    settings: Settings
    registry: Registry
    database: Database
    ledger: Ledger
    store: QueueStore
    orders: Orders
    observer: Observer
    name: str
    #: Tells the queue that a job has ended.
    turns: Turns
    #: The limits of jobs.
    gates: Gates
    #: Lines of the log that come with each job.
    lines: Lines
    #: What is said of a Redis that is away.
    outage: Outage
    #: What is to be done around each try, outermost first.
    run_hooks: tuple[RunHook, ...] = ()
    #: Renew the lease of a job no more: it is on its way back to the queue.
    let_go: Callable[[str], None] = lambda run_id: None
    #: When something that comes again and again was last said.
    said: dict[str, float] = field(default_factory=dict)
    draining: bool = False
    hastened: bool = False
