"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        level: fine; a warning is for somebody to know; what is wrong loses jobs, or stops the work.
        says: what is so.
        advice: what to do; empty where all is fine.
    """

    level: Literal["fine", "warning", "wrong"]
    says: str
    advice: str = ""


def fine(says: str) -> Finding:
    """All is well."""
    return Finding("fine", says)


def warning(says: str, advice: str) -> Finding:
    """Somebody should know it."""
    return Finding("warning", says, advice)


def wrong(says: str, advice: str) -> Finding:
    """It loses jobs, or stops the work."""
    return Finding("wrong", says, advice)
