"""`worker doctor`: checks servers and settings, and reports problems with the next step for each."""

from worker.doctor.checks import examine
from worker.doctor.finding import Finding

__all__ = ["Finding", "examine"]
