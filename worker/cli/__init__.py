"""The command line: `worker run | enqueue | status | runs | watch | pause | resume | pace | cancel | retry | migrate |
settings | jobs | keys | quarantine | dead | cron | doctor | top`.

Exit codes: 0 done; 1 what was asked for failed, or there is no such run; 2 wrong usage, unknown job or wrong
arguments; 69 a server does not answer; 78 wrong settings, or a database that is not migrated (EX_UNAVAILABLE and
EX_CONFIG of sysexits.h).
"""

from worker.cli import commands, cron, dead, doctor, info, quarantine, run
from worker.cli.app import app, main
from worker.cli.top import command as top

__all__ = ["app", "commands", "cron", "dead", "doctor", "info", "main", "quarantine", "run", "top"]
