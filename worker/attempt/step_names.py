"""The names of the steps of a job: unique, and for unnamed loops made from their order."""

from __future__ import annotations

from worker.errors import UsageError


class StepNames:
    """The names of the steps in one call of a job's function.

    Args:
        job: name of the job, for errors.

    Attributes:
        finished: the finished steps that the job has come to, in its order.
    """

    def __init__(self, job: str) -> None:
        self.finished: list[str] = []
        self._job = job
        self._names: set[str] = set()
        self._statements: set[str] = set()
        self._loops = self._sleeps = 0

    def add(self, kind: str, name: str | None) -> str:
        """Return the name of a loop or step, which no other one of the job has."""
        if kind == "sleep":
            self._sleeps += 1
            chosen = name or f"sleep-{self._sleeps}"
        elif kind == "step":
            chosen = name or kind
        else:
            self._loops += 1
            chosen = name or f"{self._loops}-{kind}"
        if chosen in self._names:
            raise UsageError(
                f"job {self._job}: two loops or steps are named {chosen!r}; give each a name of its own, made from the "
                f"value that differs"
            )
        self._names.add(chosen)
        return chosen

    def add_statement(self, walk: str) -> None:
        """Note the statement of an unnamed loop, which no other unnamed loop may walk."""
        if walk in self._statements:
            raise UsageError(
                f"job {self._job}: two loops walk the same statement: give each a name=... of its own, made from the "
                f"value that differs, so that each finds its cursor after a restart: {walk}"
            )
        self._statements.add(walk)
