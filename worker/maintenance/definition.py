"""Makes the job of a factory: an ordinary `Job` that belongs to the module that called the factory."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from worker.job.decorator import JobKeywords, job
from worker.job.definition import Job
from worker.maintenance.target import Target, find_target


class Definition:
    """The job that a factory makes. Only the factory itself makes one: its caller is looked up.

    Args:
        kind: The name of the factory.
        entity: The mapped class or `Table` that the job works on.
        options: The options of `@job`.
        default_name: The name of the job without `name=` and variable. Default: the names of factory and table.

    Attributes:
        name: The name of the job: `name=`, otherwise the variable of the module that the job is assigned to.
        target: The table.

    Raises:
        RegistrationError: The entity is neither a mapped class nor a `Table`.
    """

    def __init__(self, kind: str, entity: Any, options: JobKeywords, *, default_name: str | None = None) -> None:
        frame = sys._getframe(2)
        self._module = str(frame.f_globals.get("__name__", ""))
        self._options = options
        named = options.get("name") or _find_variable(frame)
        target = find_target(named or kind, entity)
        self.name = named or default_name or f"{kind.split('_')[0]}_{target.table.name}"
        self.target = Target(self.name, target.entity, target.table, target.mapper)

    def make_job(self, function: Callable[..., Any], summary: str) -> Job[..., Any]:
        """Return the job of a function that takes the context first.

        Raises:
            RegistrationError: An option is invalid.
        """
        function.__module__ = self._module  # `discover` finds a job in its own module
        function.__name__ = function.__qualname__ = self.name
        function.__doc__ = summary
        merged: dict[str, Any] = {**self._options, "name": self.name}
        made: Job[..., Any] = job(**merged)(function)
        return made


def _find_variable(frame: FrameType) -> str | None:
    """Return the variable that receives the result of the current call, in the code of a module.

    A function gives its job a name; an assignment does not, so it is read from the instruction behind the call.
    """
    if frame.f_code.co_name != "<module>":
        return None
    for instruction in dis.get_instructions(frame.f_code):
        if instruction.offset > frame.f_lasti and instruction.opname not in ("CACHE", "EXTENDED_ARG"):
            return str(instruction.argval) if instruction.opname in ("STORE_NAME", "STORE_GLOBAL") else None
    return None
