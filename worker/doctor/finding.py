"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: `fine`; `warning` for a risk; `wrong` for a problem that loses jobs or stops the work.
        message: The state that was found.
        advice: The next step for the operator; empty if all is fine.
    """

    level: Literal["fine", "warning", "wrong"]
    message: str
    advice: str = ""


def fine(message: str) -> Finding:
    """Return the finding of a check that passed."""
    return Finding("fine", message)


def warning(message: str, advice: str) -> Finding:
    """Return the finding of a risk."""
    return Finding("warning", message, advice)


def wrong(message: str, advice: str) -> Finding:
    """Return the finding of a problem that loses jobs or stops the work."""
    return Finding("wrong", message, advice)
