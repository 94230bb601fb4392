"""Calls: a job with its arguments, to be enqueued later: what follows another run, or stands in a group."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from worker.errors import InvalidArguments

if TYPE_CHECKING:
    from worker.job.definition import Job

R = TypeVar("R")


class _Result:
    """Stands for what is not known yet."""

    def __repr__(self) -> str:
        return "PREVIOUS_RESULT"


#: Stands, among the arguments of a call, for what the run before it returns; after a group, for the list of results.
PREVIOUS_RESULT: Any = _Result()


@dataclass(frozen=True)
class Call(Generic[R]):
    """A job with its arguments.

    Attributes:
        job: with its options: its delay counts from the end of the run before it.
        arguments: the text of a JSON object, by name, validated.
        result_as: name of the argument that is the result of what was before; None for none.
        then: what follows it.
    """

    job: Job[..., R]
    arguments: str
    result_as: str | None = None
    then: tuple[Call[Any], ...] = ()

    @property
    def chain(self) -> tuple[Call[Any], ...]:
        """This call, and those that follow it, and so on."""
        return (dataclasses.replace(self, then=()), *(later for one in self.then for later in one.chain))


def call_of(job: Job[..., R], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call[R]:
    """Return the call of a job; see `Job.call`.

    Raises:
        InvalidArguments: they do not fit the signature, or the job's options or rules make no sense in a call.
    """
    options = job.enqueue_options
    if job.unique is not None:
        raise InvalidArguments(f"job {job.name}: a unique job can neither follow another run nor stand in a group")
    if options.id is not None or options.at is not None or options.replace:
        raise InvalidArguments(f"job {job.name}: a call has no id=, at= or replace= of its own; delay= is possible")
    if options.deadline is not None or isinstance(options.expires, datetime):
        raise InvalidArguments(f"job {job.name}: a call has no deadline=, and its expires= counts from when it is due")
    named = dict(kwargs)
    if any(value is PREVIOUS_RESULT for value in args):
        raise InvalidArguments(f"job {job.name}: give PREVIOUS_RESULT by name")
    waiting = [name for name, value in named.items() if value is PREVIOUS_RESULT]
    if len(waiting) > 1:
        raise InvalidArguments(f"job {job.name}: {' and '.join(waiting)} cannot both be PREVIOUS_RESULT")
    for name in waiting:
        del named[name]
    text = job.encode_arguments_json(args, named, without=waiting)
    return Call(job, text, waiting[0] if waiting else None, tuple(options.then))


def with_argument(arguments: str, name: str, value: str) -> str:
    """Return the text of a JSON object with one member more.

    Args:
        arguments: the object.
        name: of the member.
        value: JSON text.
    """
    return f"{arguments[:-1]}{'' if arguments == '{}' else ','}{json.dumps(name)}:{value}}}"
