"""Whether a worker lives and is ready, as the probes of an orchestrator ask it."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus

from worker.observe.metrics.http_server import Answer, as_json
from worker.observe.metrics.servers import Servers
from worker.runtime.worker import Worker


@dataclass(frozen=True)
class Health:
    """The answer to a probe.

    Attributes:
        is_well: whether all checks have passed.
        checks: for each check `ok` or its problem.
    """

    is_well: bool
    checks: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_checks(cls, checks: dict[str, str]) -> Health:
        """Return the health by its checks: it is well if each is `ok`."""
        return cls(all(text == "ok" for text in checks.values()), checks)

    def as_answer(self) -> Answer:
        """Return it as an answer to a request: 200, or 503 with the checks that have failed."""
        status = HTTPStatus.OK if self.is_well else HTTPStatus.SERVICE_UNAVAILABLE
        return as_json(status, {"status": "ok" if self.is_well else "failing", "checks": self.checks})


def check_liveness(worker: Worker) -> Health:
    """Return whether a worker must be replaced: its leases are not renewed.

    Its event loop turns, because it answers. An outage of a server does not count: another process would not help.
    """
    return Health.of_checks({"leases": worker.lease_stall or "ok"})


async def check_readiness(worker: Worker, servers: Servers) -> Health:
    """Return whether a worker can run jobs: it claims them, the servers answer, and the ledger is migrated."""
    state = "draining" if worker.is_draining else "ok" if worker.ready.is_set() else "starting"
    return Health.of_checks({"worker": state, **await servers.check()})
