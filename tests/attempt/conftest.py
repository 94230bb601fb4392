"""Records of the functions that steps call."""

from __future__ import annotations

import pytest

from tests.attempt.step_functions import calls


@pytest.fixture(autouse=True)
def no_calls() -> None:
    """Clear the records of the previous test."""
    calls.clear()
