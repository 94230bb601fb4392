"""Durable steps: `ctx.step` records the result of a function in the ledger, `ctx.sleep` the end of a wait."""

from __future__ import annotations

import asyncio
import inspect
import types
import typing
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from asyncpg.exceptions import InterfaceError, InternalClientError, PostgresError
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from worker.attempt.attempt import Attempt
from worker.batch.transaction import BatchTransaction
from worker.errors import AttemptReleased, CursorMismatch, HandEnded, RegistrationError, UsageError, format_error
from worker.job.results import ResultCodec, describe_invalid
from worker.ledger import OwnedRun, StepRecord
from worker.ledger.recorded_steps import KINDS

T = TypeVar("T")

#: A shorter sleep keeps its slot: to give it back takes longer.
_SHORT_SECONDS = 0.05
_LONGEST_NAME = 200
#: Drivers cannot send moments of the year 1 in each time zone.
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_SLEEP_DAYS = 3660
_LOST = (SQLAlchemyError, PostgresError, InterfaceError, InternalClientError, OSError)


class Steps:
    """The durable steps of one attempt.

    Args:
        attempt: the attempt.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    async def run(
        self,
        name: str,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        in_transaction: bool,
    ) -> Any:
        """Run the function of a step and record its result, or return the recorded one; see `JobContext.step`."""
        codec = self._make_codec(name, function)
        async with self._entered("step", name) as (run, name, known):
            only = run.spec.only
            # A run of quarantined rows takes the results of the run that has quarantined them.
            text = await self._read(run, name, None if known else only and only[0]) if only or known else None
            if text is None:
                await self._attempt.boundary(resumable=True, table=None)
                text = await self._call(run, name, codec, function, (args, kwargs), in_transaction=in_transaction)
            try:
                return codec.decode(text)
            except ValidationError as error:
                raise UsageError(
                    f"step {name!r} of run {run.spec.id}: its recorded result does not fit the type that "
                    f"{_describe(function)} declares now: {describe_invalid(error)}. Give the step another name, and "
                    f"its function runs again"
                ) from None

    async def sleep(self, name: str | None, *, seconds: float) -> None:
        """Give the slot back for some seconds, and go on behind; see `JobContext.sleep`."""
        check_seconds(self._attempt.job, seconds)
        await self._sleep(name, None, seconds)

    async def sleep_until(self, name: str | None, moment: datetime) -> None:
        """Give the slot back until a moment, and go on behind; see `JobContext.sleep_until`."""
        check_moment(self._attempt.job, moment)
        await self._sleep(name, max(moment, _LONG_AGO), 0.0)

    async def _sleep(self, name: str | None, until: datetime | None, seconds: float) -> None:
        async with self._entered("sleep", name) as (run, name, known):
            if run.spec.only is not None or (known is not None and known.done):
                return
            await self._attempt.boundary(resumable=True, table=None)

            def write(raw: Any) -> Coroutine[Any, Any, float]:
                if known is not None:
                    return run.recorded_steps.read_sleep(raw, known)
                return run.recorded_steps.record_sleep(raw, name, until=until, seconds=seconds)

            remaining = await self._write(run, name, write)
            if remaining > _SHORT_SECONDS:
                raise AttemptReleased("sleep", remaining)
            await asyncio.sleep(max(0.0, remaining))
            if known is None:
                self._attempt.names.finished.append(name)

    # --- the parts of a step

    @asynccontextmanager
    async def _entered(self, kind: str, name: str | None) -> AsyncIterator[tuple[OwnedRun, str, StepRecord | None]]:
        """Yield the run, the name, and the recorded step, if there is one. No other step or loop may begin inside."""
        attempt = self._attempt
        await attempt.calls.check_awaited()
        await attempt.enter_loop(None)
        attempt.open_step = name = attempt.step_name(kind, name)
        try:
            run = await attempt.durable_run()
            yield run, name, self._find(run, kind, name)
        finally:
            attempt.open_step = attempt.fields.step = None

    def _find(self, run: OwnedRun, kind: str, name: str) -> StepRecord | None:
        """Return the step if an earlier attempt has finished it, or sleeps in it; None if it is to run.

        Raises:
            CursorMismatch: It is another kind of step, or the order of the finished steps has changed.
        """
        step, called = run.steps.get(name), self._attempt.names.finished
        cure = f"Deploy the old code again, or start over: worker retry {run.spec.id} --from-start"
        if step is not None and step.kind != kind:
            was = f"a {step.kind}" if step.kind in KINDS else f"a loop ({step.kind})"
            raise CursorMismatch(
                f"step {name!r} of run {run.spec.id} is {was} in the ledger, and a {kind} in the code. {cure}",
                code_version=step.code_version,
            )
        finished = [each for each in run.recorded_steps.in_order if each.done or each.kind == "sleep"]
        expected = finished[len(called)] if len(called) < len(finished) else None
        is_finished = step is not None and (step.done or kind == "sleep")
        # A step that has failed, and whose error the job has handled, may come before finished ones.
        is_early = step is None or is_finished or (expected is not None and step.position > expected.position)
        if expected is not None and expected.name != name and is_early:
            raise CursorMismatch(
                f"the order of the finished steps of run {run.spec.id} has changed: {expected.name!r} is expected, and "
                f"{name!r} comes:\n"
                f"  in the ledger: {', '.join(each.name for each in finished)}\n"
                f"  in the code:   {', '.join([*called, name])}\n{cure}",
                code_version=expected.code_version,
            )
        if not is_finished:
            if run.spec.hand is not None:
                raise HandEnded(f"step {name!r} is not finished: only the run itself runs it")
            return None
        called.append(name)
        return step

    async def _read(self, run: OwnedRun, name: str, run_id: str | None) -> str | None:
        async with run.driver.reading() as raw:
            return await run.recorded_steps.read_result(raw, name, run_id=run_id)

    async def _call(
        self,
        run: OwnedRun,
        name: str,
        codec: ResultCodec,
        function: Callable[..., Any],
        given: tuple[Sequence[Any], Mapping[str, Any]],
        *,
        in_transaction: bool,
    ) -> str:
        """Run the function of a step, and record its result. Return the result as JSON."""
        attempt, (args, kwargs) = self._attempt, given
        await self._write(run, name, lambda raw: run.recorded_steps.begin(raw, name, function=_describe(function)))
        opened = BatchTransaction(run, f"step {name!r}", scope=f"the step {name!r}")
        mark = attempt.calls.mark
        attempt.control.step_began(name)
        try:
            if in_transaction:
                value = function(opened.session, *args, **kwargs)
                if not inspect.isawaitable(value):
                    raise UsageError(f"step {name!r}: with transaction=True, {_describe(function)} is an `async def`")
            elif _is_async(function):
                value = function(*args, **kwargs)
            else:
                value = await attempt.call_in_thread(partial(function, *args, **kwargs))
            value = await value if inspect.isawaitable(value) else value
            await attempt.calls.check_awaited(mark)
            text = self._encode(codec, name, value)
            await opened.flush()  # its errors are those of the function: they leave no doubt about the commit
        except BaseException:
            await opened.roll_back()
            raise
        finally:
            attempt.control.step_ended()
        await self._commit(run, name, opened, text)
        attempt.names.finished.append(name)
        return text

    def _encode(self, codec: ResultCodec, name: str, value: Any) -> str:
        try:
            text = codec.encode(value)
        except UsageError as error:
            raise UsageError(
                f"{error}. The ledger keeps it as JSON: return texts, numbers, lists, or a pydantic model, and the key "
                f"of a row instead of the row"
            ) from None
        size, most = len(text.encode()), self._attempt.settings.worker.max_result_bytes
        if size > most:
            raise UsageError(
                f"step {name!r} of job {self._attempt.job}: its result has {size:,} bytes, over "
                f"worker.max_result_bytes ({most:,}): write large results to a table or a file, and return the key"
            )
        return text

    async def _commit(self, run: OwnedRun, name: str, opened: BatchTransaction, text: str) -> None:
        """Commit the result, with the writes of the step. Whether a failed COMMIT took effect, the ledger knows."""
        try:
            self._attempt.ensure_not_abandoned()
            await opened.commit(lambda raw: run.recorded_steps.finish(raw, name, result=text))
        except BaseException as error:
            with suppress(*_LOST):
                await opened.roll_back()
            if not isinstance(error, _LOST):
                raise
            with suppress(*_LOST):
                await run.checkpoints.reload()
            if not run.steps[name].done:
                raise
        run.recorded_steps.note_finished(name)

    async def _write(self, run: OwnedRun, name: str, write: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
        """Write a record in a transaction of its own. Return what `write` returns."""
        written: list[T] = []

        async def note(raw: Any) -> None:
            written.append(await write(raw))

        opened = BatchTransaction(run, f"step {name!r}")
        try:
            await opened.commit(note)
        except BaseException:
            await opened.roll_back()
            raise
        return written[0]

    def _make_codec(self, name: str, function: Callable[..., Any]) -> ResultCodec:
        """Return the codec of a step's result, checked before the function runs."""
        where = f"job {self._attempt.job}: step {name!r}"
        if type(name) is not str or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
            raise UsageError(f"{where}: a name has 1 to {_LONGEST_NAME} printable characters")
        if not callable(function):
            if inspect.iscoroutine(function):
                function.close()
            raise UsageError(
                f"{where}: {type(function).__name__} is no function: pass the function and its arguments, as in "
                f"ctx.step({name!r}, create_export, day)"
            )
        hints = _read_hints(where, function)
        codec = ResultCodec(where, hints.get("return", Any), is_annotated="return" in hints)
        try:
            codec.adapter  # noqa: B018
        except RegistrationError as error:
            raise UsageError(str(error)) from None
        return codec


def check_moment(job: str, moment: datetime) -> None:
    """Raise `UsageError` unless a job may sleep until a moment."""
    if not isinstance(moment, datetime) or moment.tzinfo is None or moment.utcoffset() is None:
        raise UsageError(
            f"job {job}: ctx.sleep_until({moment!r}): give a datetime with a time zone, e.g. "
            f"datetime.now(UTC) + timedelta(hours=1)"
        )
    check_seconds(job, max(0.0, (moment - datetime.now(UTC)).total_seconds()))


def check_seconds(job: str, seconds: float) -> None:
    """Raise `UsageError` unless a job may sleep for so many seconds."""
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 <= seconds <= _LONGEST_SLEEP_DAYS * 86_400:
        raise UsageError(f"job {job}: a sleep of {seconds!r} s: give seconds from 0 to {_LONGEST_SLEEP_DAYS} days")


def _is_async(function: Callable[..., Any]) -> bool:
    call = getattr(type(function), "__call__", None)  # noqa: B004 - of an object
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _innermost(function: Any) -> Any:
    while isinstance(function, partial):
        function = function.func
    return inspect.unwrap(function)


def _read_hints(where: str, function: Callable[..., Any]) -> dict[str, Any]:
    """Return the type that a function declares for its result, as `return`; nothing if it declares none."""
    inner = _innermost(function)
    inner = inner if hasattr(inner, "__annotations__") else getattr(type(inner), "__call__", inner)  # noqa: B004
    annotations = getattr(inner, "__annotations__", {})
    if "return" not in annotations:
        return {}
    returns = types.SimpleNamespace(__annotations__={"return": annotations["return"]})
    try:
        return typing.get_type_hints(returns, globalns=getattr(inner, "__globals__", {}), include_extras=True)
    except Exception as error:  # noqa: BLE001 - an annotation may be any expression
        raise UsageError(f"{where}: the type of its result cannot be read: {format_error(error)}") from None


def _describe(function: Callable[..., Any]) -> str:
    inner = _innermost(function)
    return f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
