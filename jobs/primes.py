"""Prime numbers: a long computation, in a process of its own."""

from __future__ import annotations

from worker import JobContext, JobInterrupted, job

_REPORT_EVERY = 10_000


@job(run_in="process", timeout=600)
def count_primes(ctx: JobContext, below: int) -> int:
    """Count the primes below a number, by the sieve of Eratosthenes. Report the progress when interrupted."""
    composite = bytearray(below)
    count = 0
    try:
        for number in range(2, below):
            if number % _REPORT_EVERY == 0:
                ctx.progress(number, below)
            if not composite[number]:
                count += 1
                composite[number * number :: number] = b"\x01" * len(range(number * number, below, number))
    except JobInterrupted:
        ctx.progress(number, below)
        raise
    return count
