"""What all runs of one worker share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from worker.attempt.offload import JobPools
from worker.db.engine import Database
from worker.job.middleware import RunHook
from worker.job.registry import Registry
from worker.ledger import Ledger
from worker.queue.outage_log import OutageLog
from worker.queue.store import QueueStore
from worker.runtime.ack_batcher import AckBatcher
from worker.runtime.limiter import Limiter
from worker.runtime.log_sampling import SampledLogger
from worker.runtime.observer import Observer
from worker.runtime.operator_state import OperatorState
from worker.settings import Settings


@dataclass
class WorkerServices:
    """What all runs of one worker share."""

    settings: Settings
    registry: Registry
    database: Database
    ledger: Ledger
    store: QueueStore
    orders: OperatorState
    observer: Observer
    name: str
    #: Threads and processes for plain functions.
    pools: JobPools
    #: Tells the queue that a job has ended.
    turns: AckBatcher
    #: The limits of jobs.
    limiter: Limiter
    #: SampledLogger of the log that come with each job.
    lines: SampledLogger
    #: What is said of a Redis that is away.
    outage: OutageLog
    #: What is to be done around each try, outermost first.
    run_hooks: tuple[RunHook, ...] = ()
    #: Renew the lease of a job no more: it is on its way back to the queue.
    stop_renewing: Callable[[str], None] = lambda run_id: None
    #: When something that comes again and again was last said.
    said: dict[str, float] = field(default_factory=dict)
    draining: bool = False
    is_shutdown_forced: bool = False
