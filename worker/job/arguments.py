"""Arguments and results: validated by the types of a job's signature, and converted to JSON and back."""

from __future__ import annotations

import hashlib
import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    PydanticSchemaGenerationError,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
    create_model,
)
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import to_jsonable_python

from worker.errors import InvalidArguments, RegistrationError

_BYTES = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


class JobCodec:
    """Validates the arguments and results of one job, and converts them to JSON and back.

    The validators are compiled at the first use and kept: `Job.options` shares its job's codec.

    Args:
        job: name of the job, for errors.
        function: the job's function; its first parameter is the context.
    """

    def __init__(self, job: str, function: Callable[..., Any]) -> None:
        self._job = job
        self._function = function

    def __repr__(self) -> str:
        return f"<JobCodec of {self._job}>"

    @cached_property
    def signature(self) -> inspect.Signature:
        """The function's signature without its context."""
        whole = inspect.signature(self._function)
        parameters = list(whole.parameters.values())[1:]
        try:
            hints = self._hints
        except RegistrationError:  # a type that only the type checker imports; `check` reports it
            return whole.replace(parameters=parameters)
        resolved = [each.replace(annotation=hints.get(each.name, each.empty)) for each in parameters]
        return whole.replace(parameters=resolved, return_annotation=hints.get("return", whole.empty))

    @cached_property
    def _hints(self) -> dict[str, Any]:
        """The types of the arguments and the result; the context's annotation is not evaluated.

        The module of a job may import `JobContext` for the type checker alone, and this package must not import it.
        """
        function = inspect.unwrap(self._function)
        context = next(iter(inspect.signature(function).parameters), None)
        annotations = {name: hint for name, hint in inspect.get_annotations(function).items() if name != context}
        annotated = types.SimpleNamespace(
            __annotations__=annotations, __type_params__=getattr(function, "__type_params__", ())
        )
        try:
            return typing.get_type_hints(annotated, globalns=function.__globals__, include_extras=True)
        except NameError as error:
            raise RegistrationError(f"job {self._job}: {error}; import the types of its arguments") from None

    @cached_property
    def _arguments(self) -> type[BaseModel]:
        fields: dict[str, Any] = {}
        for parameter in self.signature.parameters.values():
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (self._hints.get(parameter.name, Any), default)
        try:
            return create_model(f"{self._job}_arguments", __config__=ConfigDict(extra="forbid", **_BYTES), **fields)
        except PydanticSchemaGenerationError as error:
            raise RegistrationError(f"job {self._job}: {str(error).splitlines()[0]}") from None

    @cached_property
    def _returns(self) -> TypeAdapter[Any]:
        hint = self._hints.get("return", Any)
        try:
            return TypeAdapter(hint, config=_BYTES)
        except PydanticUserError:  # a model, a dataclass or a TypedDict has a configuration of its own
            return TypeAdapter(hint)

    @cached_property
    def version(self) -> str:
        """Hash of the signature. It is equal if the arguments have the same names, types and constraints."""
        try:
            schema = json.dumps(self._arguments.model_json_schema(), sort_keys=True)
        except PydanticInvalidForJsonSchema:
            schema = str(self.signature)
        return hashlib.sha256(schema.encode()).hexdigest()[:8]

    def check(self) -> None:
        """Compile the validators.

        Raises:
            RegistrationError: A type of the signature cannot be converted to JSON.
        """
        self._arguments  # noqa: B018
        try:
            self._returns  # noqa: B018
        except PydanticSchemaGenerationError as error:
            raise RegistrationError(f"job {self._job}: {str(error).splitlines()[0]}") from None

    def encode_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, without: Sequence[str] = ()) -> str:
        """Validate arguments and return them as the text of a JSON object.

        Args:
            args: positional arguments, without the context.
            kwargs: keyword arguments.
            without: names of arguments whose values are not known yet.

        Raises:
            InvalidArguments: They do not fit the signature.
        """
        if not args and not kwargs and not self._arguments.model_fields:
            return "{}"
        model = self._validate(args, kwargs, from_json=False, without=without)
        return model.model_dump_json(exclude_unset=True, exclude=set(without))

    def decode_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by name, converted from JSON values to the types of the signature.

        Raises:
            InvalidArguments: They do not fit the signature.
        """
        if not args and not kwargs and not self._arguments.model_fields:
            return {}
        model = self._validate(args, kwargs, from_json=True)
        return {name: getattr(model, name) for name in type(model).model_fields}

    def _validate(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, from_json: bool, without: Sequence[str] = ()
    ) -> BaseModel:
        where = f"job {self._job}{self.signature}"
        try:
            named = self.signature.bind_partial(*args).arguments if args else {}
        except TypeError:
            raise InvalidArguments(f"{where}: got {len(args)} positional arguments") from None
        repeated = sorted(set(named) & set(kwargs))
        if repeated:
            raise InvalidArguments(f"{where}: got multiple values for {', '.join(repeated)}")
        values = {**named, **kwargs}
        arguments = self._arguments
        if without:
            unknown = sorted(set(without) - arguments.model_fields.keys())
            if unknown:
                raise InvalidArguments(f"{where}: has no argument {', '.join(unknown)}")
            fields: dict[str, Any] = dict.fromkeys(without, (Any, None))
            arguments = create_model(f"{self._job}_call", __base__=arguments, **fields)
        try:
            if from_json:
                return arguments.model_validate_json(json.dumps(values))
            return arguments.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].lower()}" for problem in error.errors()
            )
            raise InvalidArguments(f"{where}: {problems}") from None

    def encode_result(self, result: Any) -> str:
        """Return a result as JSON text.

        Raises:
            ValueError: It cannot be converted to JSON.
        """
        try:
            return self._returns.dump_json(result, warnings="none").decode()
        except (ValueError, TypeError):
            return json.dumps(to_jsonable_python(result))

    def decode_result(self, text: str) -> Any:
        """Return a result from JSON text, in the type that the function declares."""
        try:
            return self._returns.validate_json(text)
        except ValidationError:
            return json.loads(text)
