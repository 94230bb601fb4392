"""No garbage collection while rows are made: thousands of records at once look like garbage to count, and are none.

CPython looks for reference cycles after each 700 new containers. Rows of scalars have none, but each of them counts:
reading 200,000 rows spends more than half of its time in the collector. What is suspended here is that search alone;
what nothing refers to is freed as always, and the search follows when the rows are there.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_suspended = 0


@contextmanager
def suspended() -> Iterator[None]:
    """Suspend the collector; several at the same time are one."""
    global _suspended
    if _suspended == 0 and not gc.isenabled():
        yield  # somebody else has switched it off, and it stays so
        return
    _suspended += 1
    gc.disable()
    try:
        yield
    finally:
        _suspended -= 1
        if _suspended == 0:
            gc.enable()
