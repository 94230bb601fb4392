"""The command line `worker`.

Exit codes: 0 success; 1 the operation failed, or there is no such run; 2 wrong usage, an unknown job, wrong arguments,
or jobs that cannot be imported; 69 a server does not answer (EX_UNAVAILABLE of sysexits.h); 78 invalid settings, or a
database that is not migrated (EX_CONFIG).
"""

from worker.cli import commands, cron, dead, info, limits, outbox, plan, quarantine, reports, run, runs, status, web
from worker.cli.app import app, main
from worker.cli.top import command as top

__all__ = [
    "app",
    "commands",
    "cron",
    "dead",
    "info",
    "limits",
    "main",
    "outbox",
    "plan",
    "quarantine",
    "reports",
    "run",
    "runs",
    "status",
    "top",
    "web",
]
