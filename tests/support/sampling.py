"""Large tables of cases: `make test` runs a sample of them, and `make test-long` the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def sampled(cases: Iterable[Any], every: int, *, ids: Iterable[str] | None = None) -> list[Any]:
    """Return the cases as parameters of a test, where all but each n-th are marked `long`.

    Args:
        cases: the parameters; a tuple holds those of several arguments.
        every: the distance of two cases of the sample.
        ids: an id for each case; None leaves them to pytest.
    """
    names = None if ids is None else list(ids)
    parameters = []
    for place, case in enumerate(cases):
        values = case if isinstance(case, tuple) else (case,)
        marks = [pytest.mark.long] if place % every else []
        parameters.append(pytest.param(*values, marks=marks, id=names[place] if names else None))
    return parameters
