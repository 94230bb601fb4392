"""Calls: a job with its arguments, to follow another run or to be a member of a group."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from worker.job.definition import Job

R = TypeVar("R")


class _PreviousResult:
    """Placeholder for the result of the preceding run."""

    def __repr__(self) -> str:
        return "PREVIOUS_RESULT"


#: Placeholder for an argument of a call: the result of the preceding run; after a group, the list of its results.
PREVIOUS_RESULT: Any = _PreviousResult()


@dataclass(frozen=True)
class Call(Generic[R]):
    """A job with its arguments; made by `Job.call`.

    Attributes:
        job: with its options. Its delay counts from the end of the preceding run.
        arguments: validated arguments, the text of a JSON object by name.
        result_as: name of the argument that gets the result of the preceding run; None for none.
        then: the calls that follow it.
    """

    job: Job[..., R]
    arguments: str
    result_as: str | None = None
    then: tuple[Call[Any], ...] = ()

    @property
    def chain(self) -> tuple[Call[Any], ...]:
        """This call and all calls that follow it, directly or indirectly."""
        return (dataclasses.replace(self, then=()), *(later for one in self.then for later in one.chain))


def with_argument(arguments: str, name: str, value: str) -> str:
    """Return the text of a JSON object with one more member.

    Args:
        arguments: the object.
        name: name of the member.
        value: JSON text.
    """
    return f"{arguments[:-1]}{'' if arguments == '{}' else ','}{json.dumps(name)}:{value}}}"
