"""The due times of a job: cron expressions in a time zone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from worker.errors import RegistrationError


@dataclass(frozen=True)
class CronLine:
    """One cron expression of five or six fields, and the time zone in which it is read.

    Attributes:
        expression: minute, hour, day of month, month, day of week; a sixth field, before them, holds seconds.
        timezone: name of an IANA time zone.
    """

    expression: str
    timezone: str

    def __str__(self) -> str:
        return f"{self.expression} {self.timezone}"

    def next_after(self, moment: datetime) -> datetime:
        """Return the first due time after `moment`.

        Changes of the clock follow Debian's rules: a time that the clock skips is due at once after the change; a time
        that occurs twice is due the first time.

        Args:
            moment: aware time.

        Returns:
            Aware time in this line's zone.
        """
        return next(CronSim(self.expression, moment.astimezone(ZoneInfo(self.timezone))))


def make_schedule(job: str, expressions: Sequence[str], timezone: str) -> tuple[CronLine, ...]:
    """Return the cron lines of a job.

    Args:
        job: name of the job, for errors.
        expressions: cron expressions of five fields, or of six with seconds first.
        timezone: the zone in which they are read.

    Raises:
        RegistrationError: An expression or the time zone is invalid, or an expression is repeated.
    """
    lines = tuple(_make_line(job, expression, timezone) for expression in expressions)
    if len(set(lines)) != len(lines):
        raise RegistrationError(f"job {job}: cron= repeats an expression; remove one of the two")
    return lines


def _make_line(job: str, expression: str, timezone: str) -> CronLine:
    try:
        zone = ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):
        raise RegistrationError(f"job {job}: there is no time zone {timezone!r}; write e.g. Europe/London") from None
    try:
        CronSim(expression, datetime.now(zone))
    except CronSimError as error:
        raise RegistrationError(
            f"job {job}: cron {expression!r}: {error}; write five fields: minute hour day month weekday, or six with "
            f"the seconds first"
        ) from None
    return CronLine(expression, timezone)
