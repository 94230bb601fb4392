"""Checks that the options of `@job` have values that can work, before any run is enqueued."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from worker.errors import InvalidArguments, RegistrationError
from worker.job.definition import LONGEST_SECONDS, JobOptions, OnStall, OnStatementChange, check_priority
from worker.job.limits import UniqueWhile

_CHOICES = {"on_stall": OnStall, "on_statement_change": OnStatementChange, "unique_while": UniqueWhile}

_TEXTS = ("concurrency_key", "rate", "rate_key", "fair_by")


def check_job_options(name: str, rules: JobOptions) -> None:
    """Raise `RegistrationError` if an option has a value that cannot work, or two options contradict each other."""
    _check_name(name)
    for option, choices in _CHOICES.items():
        allowed = typing.get_args(choices)
        if getattr(rules, option) not in allowed:
            raise _refusal(name, rules, option, f"give {' or '.join(map(repr, allowed))}")
    for option in _TEXTS:
        if not isinstance(getattr(rules, option), str | None):
            words = 'write e.g. "100/minute"' if option == "rate" else "give the name of an argument"
            raise _refusal(name, rules, option, words)
    for option in ("once", "overlap"):
        if not isinstance(getattr(rules, option), bool):
            raise _refusal(name, rules, option, "give True or False")
    _check_numbers(name, rules)
    _check_sequences(name, rules)
    _check_pairs(name, rules)
    if rules.verify is not None and not callable(rules.verify) and not hasattr(rules.verify, "get_final_froms"):
        raise _refusal(
            name,
            rules,
            "verify",
            "give a select() of the rows that are left undone, or a function that returns it from the job's arguments",
        )
    try:
        check_priority(f"job {name}", rules.priority)
    except InvalidArguments as error:
        raise RegistrationError(str(error)) from None


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name.isprintable() or not name.strip() or name == "*":
        raise RegistrationError(
            f"job {name!r}: it has no name that a command can take: give @job(name=...) a text without control "
            f"characters that is not '*'"
        )
    if name == "<lambda>":
        raise RegistrationError("a lambda as a job needs a name: @job(name=...), or use a `def`")


def _check_numbers(name: str, rules: JobOptions) -> None:
    for option in ("timeout", "stall_timeout"):
        value = getattr(rules, option)
        if value is not None and not (_is_number(value) and value > 0):
            raise _refusal(name, rules, option, "give seconds above 0")
    for option in ("grace_period", "result_ttl"):
        value = getattr(rules, option)
        if value is not None and not (_is_number(value) and 0 <= value <= LONGEST_SECONDS):
            raise _refusal(name, rules, option, "give seconds from 0 to a hundred years")
    if rules.unique_for is not None and not (_is_number(rules.unique_for) and 0 < rules.unique_for <= LONGEST_SECONDS):
        raise _refusal(name, rules, "unique_for", "give seconds above 0, up to a hundred years")
    if rules.yield_after is not None and not (_is_number(rules.yield_after) and rules.yield_after >= 0):
        raise _refusal(name, rules, "yield_after", "give seconds from 0, or 0 for never")
    if rules.max_attempts is not None and not (type(rules.max_attempts) is int and rules.max_attempts >= 1):
        raise _refusal(name, rules, "max_attempts", "give a whole number from 1")
    if type(rules.concurrency) is not int or rules.concurrency < 0:
        raise _refusal(name, rules, "concurrency", "give at least 1, or 0 for no limit")
    own = rules.backoff
    if own is not None and not callable(own) and not (_is_number(own) and own >= 0):
        raise _refusal(name, rules, "backoff", "give seconds from 0, or a function of the number of the failed attempt")
    if inspect.iscoroutinefunction(own):
        raise _refusal(name, rules, "backoff", "give a plain function: it is not awaited")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _check_sequences(name: str, rules: JobOptions) -> None:
    errors = rules.do_not_retry
    if not _is_list(errors) or not all(isinstance(one, type) and issubclass(one, BaseException) for one in errors):
        raise _refusal(name, rules, "do_not_retry", "give a list of classes of errors")
    if not _is_list(rules.throttle) or not all(callable(getattr(one, "check", None)) for one in rules.throttle):
        raise _refusal(name, rules, "throttle", "give a list of throttles, e.g. [RowsPerSecond(5_000)]")
    if not isinstance(rules.timezone, str):
        raise _refusal(name, rules, "timezone", "write e.g. 'Europe/London'")
    for option, value in (("cron", rules.cron), ("unique", rules.unique)):
        plain = value is None if option == "cron" else isinstance(value, bool)
        if not plain and not isinstance(value, str) and not (_is_list(value) and _are_texts(value)):
            words = "a cron expression or a list of them" if option == "cron" else "True, or names of arguments"
            raise _refusal(name, rules, option, f"give {words}")


def _is_list(value: Any) -> bool:
    """Return whether a value can be read more than once: an iterator is empty after this check."""
    return isinstance(value, Iterable) and not isinstance(value, str) and iter(value) is not value


def _are_texts(values: Any) -> bool:
    return all(isinstance(one, str) for one in values)


def _check_pairs(name: str, rules: JobOptions) -> None:
    if rules.once and (rules.cron or rules.unique):
        raise RegistrationError(f"job {name}: once=True runs one time: remove cron= and unique=")
    for option, needed in (("concurrency_key", "concurrency"), ("rate_key", "rate"), ("unique_for", "unique")):
        if getattr(rules, option) is not None and not getattr(rules, needed):
            raise RegistrationError(f"job {name}: {option}= has no effect without {needed}=: give both, or remove it")


def check_verify(name: str, rules: JobOptions, parameters: Sequence[str]) -> None:
    """Raise `RegistrationError` if the function of `verify` cannot be called: it is, when all work has been done.

    Args:
        name: the name of the job.
        rules: its options.
        parameters: the names of its arguments.
    """
    if not callable(rules.verify):
        return
    if inspect.iscoroutinefunction(rules.verify):
        raise _refusal(name, rules, "verify", "give a plain function: it is not awaited")
    try:
        inspect.signature(rules.verify).bind(**dict.fromkeys(parameters))
    except ValueError:  # a builtin without a signature
        return
    except TypeError as error:
        raise RegistrationError(
            f"job {name}: the function of verify= gets the arguments of the job by name "
            f"({', '.join(parameters) or 'none'}): {error}"
        ) from None


def _refusal(name: str, rules: JobOptions, option: str, advice: str) -> RegistrationError:
    return RegistrationError(f"job {name}: {option}={getattr(rules, option)!r}: {advice}")
