"""Moved: import from `tests.support.waiting`. TODO: remove when nobody imports it from here."""

from tests.support.waiting import until

__all__ = ["until"]
