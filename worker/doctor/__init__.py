"""`worker doctor`: looks at servers and settings, and says what is wrong with them and what to do."""

from worker.doctor.checks import examine
from worker.doctor.finding import Finding

__all__ = ["Finding", "examine"]
