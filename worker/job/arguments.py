"""Arguments and results: validated by the types of a job's signature, and converted to JSON and back."""

from __future__ import annotations

import hashlib
import inspect
import json
import types
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cached_property
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    TypeAdapter,
    ValidationError,
    create_model,
)
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, PydanticJsonSchemaWarning
from pydantic_core import core_schema

from worker.errors import InvalidArguments, RegistrationError, format_error
from worker.job.results import (
    COMPILE_ERRORS,
    LOSSY,
    ResultCodec,
    describe_invalid,
    is_unchecked,
    list_problems,
    make_schema_error,
    show_difference,
)
from worker.job.round_trip import CONFIG, is_exact, is_plain_default, is_same, keeps_default, make_adapter

#: Problems of a default that depend on the clock or on the machine: another one may accept it.
_OF_THE_MOMENT = frozenset(
    (
        "date_past",
        "date_future",
        "datetime_past",
        "datetime_future",
        "path_not_file",
        "path_not_directory",
        "path_exists",
    )
)


class _ArgumentsSchema(GenerateJsonSchema):
    """JSON Schema that tells a time without a zone from one with a zone."""

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        """Return the schema of a time."""
        is_naive = schema.get("tz_constraint") == "naive"
        return super().datetime_schema(schema) | ({"format": "date-time-local"} if is_naive else {})


class UndefinedType(RegistrationError):
    """A type of a signature is not defined, or not yet."""


class JobCodec:
    """Validates the arguments and results of one job, and converts them to JSON and back.

    The validators are compiled at the first use and kept: `Job.options` shares its job's codec.

    Args:
        job: name of the job, for errors.
        function: the job's function; its first parameter is the context.

    Attributes:
        job: name of the job.
    """

    def __init__(self, job: str, function: Callable[..., Any]) -> None:
        self.job = job
        self._function = function

    def __repr__(self) -> str:
        return f"<JobCodec of {self.job}>"

    @cached_property
    def signature(self) -> inspect.Signature:
        """The function's signature without its context."""
        whole = inspect.signature(self._function)
        parameters = list(whole.parameters.values())[1:]
        try:
            hints = self._hints
        except UndefinedType:  # a type that only the type checker imports; `check` reports it
            return whole.replace(parameters=parameters)
        resolved = [each.replace(annotation=hints.get(each.name, each.empty)) for each in parameters]
        returns = hints.get("return", whole.empty)
        return whole.replace(parameters=resolved, return_annotation=None if returns is type(None) else returns)

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
        except (NameError, AttributeError) as error:  # a module of a circular import lacks attributes for a while
            raise UndefinedType(f"job {self.job}: {error}; import the types of its arguments") from None
        except Exception as error:  # noqa: BLE001 - the text of an annotation is evaluated
            raise RegistrationError(f"job {self.job}: its annotations cannot be read: {format_error(error)}") from None

    @cached_property
    def _arguments(self) -> type[BaseModel]:
        fields: dict[str, Any] = {}
        for parameter in self.signature.parameters.values():
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (self._hints.get(parameter.name, Any), default)
        config = ConfigDict(extra="forbid", protected_namespaces=(), **CONFIG)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an argument may have the name of a method of pydantic's model
                model: type[BaseModel] = create_model(f"{self.job}_arguments", __config__=config, **fields)
        except (*COMPILE_ERRORS, NameError) as error:
            raise self._explain_schema(error) from None
        for name, field in model.model_fields.items():
            self._check_default(name, field)
            if field.alias or field.validation_alias or field.serialization_alias:
                raise RegistrationError(f"job {self.job}: argument {name} has an alias; rename the parameter instead")
            if field.exclude:
                raise RegistrationError(f"job {self.job}: argument {name} has exclude=True, so no run would get it")
        return model

    def _check_default(self, name: str, field: FieldInfo) -> None:
        """Raise `RegistrationError` if a job would get a default that is not of the type of its argument.

        A default that pydantic would convert is refused as well: it reaches the job as it is written.
        """
        if field.is_required() or field.default_factory is not None:
            return
        if not field.metadata and is_plain_default(field.annotation, field.default):
            return
        whole: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        where = f"job {self.job}: the default of argument {name} does not fit its type"
        try:
            validated = make_adapter(whole).validate_python(field.default)
            fits = field.validate_default or keeps_default(field.default, validated)
        except ValidationError as error:
            if all(problem["type"] in _OF_THE_MOMENT for problem in error.errors(include_input=False)):
                return
            raise RegistrationError(f"{where}: {describe_invalid(error)}") from None
        except Exception as error:  # noqa: BLE001 - a validator may raise anything
            raise RegistrationError(f"{where}: {format_error(error)}") from None
        if not fits:
            kinds = [type(value).__qualname__ for value in (field.default, validated)]
            changed = "another value" if kinds[0] == kinds[1] else f"a {kinds[1]}"
            raise RegistrationError(f"{where}: pydantic makes {changed} of this {kinds[0]}: write that as the default")

    def _explain_schema(self, error: Exception) -> RegistrationError:
        """Return the error for a type without a schema: it names the first argument that has one."""
        for name in self.signature.parameters:
            try:
                TypeAdapter(self._hints.get(name, Any))
            except COMPILE_ERRORS as reason:
                return make_schema_error(f"job {self.job}: argument {name}", self._hints[name], reason)
        return make_schema_error(f"job {self.job}: arguments", self.signature, error)

    @property
    def has_plain_types(self) -> bool:
        """Whether all types and defaults are known without compiling them; False for a type that is not defined."""
        try:
            hints = self._hints
        except UndefinedType:
            return False
        return all(hint is Any or is_exact(hint) for hint in hints.values()) and all(
            each.default is each.empty or is_plain_default(hints.get(each.name, Any), each.default)
            for each in self.signature.parameters.values()
        )

    @cached_property
    def _inexact(self) -> frozenset[str]:
        """Names of the arguments whose types do not promise that a value survives the round trip through JSON."""
        plain = {name: field for name, field in self._arguments.model_fields.items() if not field.metadata}
        return frozenset(
            name
            for name in self._arguments.model_fields
            if name not in plain or not is_exact(self._hints.get(name, Any))
        )

    @cached_property
    def _drawn(self) -> frozenset[str]:
        """Names of the arguments whose default is made by a factory: it is drawn once, when the run is enqueued."""
        fields = self._arguments.model_fields.items()
        return frozenset(name for name, field in fields if field.default_factory is not None)

    @cached_property
    def _has_arguments(self) -> bool:
        return bool(self._arguments.model_fields)

    def draws_defaults(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Return whether default factories make an argument that is neither among the given ones."""
        if not self._drawn:
            return False
        given = set(list(self.signature.parameters)[: len(args)]) | kwargs.keys()
        return not self._drawn <= given

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        """The other defaults, as JSON values by name."""
        fields = self._arguments.model_fields.items()
        known = {name: field.default for name, field in fields if not field.is_required() and name not in self._drawn}
        dumped: dict[str, Any] = self._arguments.model_construct(**known).model_dump(
            mode="json", include=set(known), by_alias=False, round_trip=True, warnings="none"
        )
        return dumped

    def with_defaults(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return JSON values by name, with the defaults of omitted arguments."""
        return {**self._defaults, **arguments}

    @cached_property
    def _result(self) -> ResultCodec:
        hints = self._hints
        return ResultCodec(f"job {self.job}", hints.get("return", Any), is_annotated="return" in hints)

    @cached_property
    def version(self) -> str:
        """Hash of the signature. It is equal if the arguments have the same names, types and constraints."""
        try:
            schema = json.dumps(self._make_schema(GenerateJsonSchema), sort_keys=True)
        except PydanticInvalidForJsonSchema:
            schema = str(self.signature)
        return hashlib.sha256(schema.encode()).hexdigest()[:8]

    def make_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the arguments, an object by name; an empty schema if a type has none."""
        try:
            return self._make_schema(_ArgumentsSchema)
        except PydanticInvalidForJsonSchema:
            return {}

    def _make_schema(self, generator: type[GenerateJsonSchema]) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PydanticJsonSchemaWarning)  # a default may have no JSON
            return self._arguments.model_json_schema(schema_generator=generator)

    def check(self) -> None:
        """Compile the validators.

        Raises:
            RegistrationError: A type of the signature cannot be converted to JSON.
        """
        self._arguments  # noqa: B018
        self._result.adapter  # noqa: B018

    def encode_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, without: Sequence[str] = ()) -> str:
        """Validate arguments and return them as the text of a JSON object.

        Args:
            args: positional arguments, without the context.
            kwargs: keyword arguments.
            without: names of arguments whose values are not known yet.

        Raises:
            InvalidArguments: They do not fit the signature.
        """
        if not args and not kwargs and not self._has_arguments:
            return "{}"
        model = self._validate(args, kwargs, from_json=False, without=without)
        pending = set(without)
        left_out = type(model).model_fields.keys() - model.model_fields_set - self._drawn
        changed = self._inexact & type(model).model_fields.keys() - pending - left_out
        try:
            text = model.model_dump_json(
                exclude=pending | left_out, by_alias=False, round_trip=True, warnings="none" if changed else "error"
            )
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidArguments(f"{self._where}: {self._name_unwritable(model, error)}") from None
        if changed or not is_unchecked(text):
            self._check_round_trip(model, text, type(model).model_fields.keys() - pending - left_out)
        return text

    def _check_round_trip(self, model: BaseModel, text: str, names: Set[str]) -> None:
        """Raise `InvalidArguments` if an argument does not come back from JSON as it was given."""
        try:
            arrived = type(model).model_validate_json(text, by_alias=True, by_name=True)
        except (ValidationError, RecursionError) as error:
            unreadable = self._name_unreadable(model, names)
            raise InvalidArguments(f"{self._where}: {unreadable}{LOSSY}: {describe_invalid(error)}") from None
        for name in sorted(names):
            before, after = getattr(model, name), getattr(arrived, name)
            try:
                same = is_same(before, after)
            except Exception as error:  # noqa: BLE001 - `__eq__` of any class may raise anything
                raise InvalidArguments(f"{self._where}: {name}: cannot be compared: {format_error(error)}") from None
            if not same:
                raise InvalidArguments(f"{self._where}: {name}: {LOSSY}: {show_difference(before, after)}")

    def _name_unreadable(self, model: BaseModel, names: Set[str]) -> str:
        """Return the names of the arguments whose text the JSON parser does not read, with a colon."""
        found = []
        for name in sorted(names):
            try:
                TypeAdapter(Any).validate_json(
                    model.model_dump_json(include={name}, by_alias=False, round_trip=True, warnings="none")
                )
            except (ValidationError, RecursionError):
                found.append(name)
        return f"{', '.join(found)}: " if found else ""

    def _name_unwritable(self, model: BaseModel, error: Exception) -> str:
        """Return the name of the argument that cannot be written as JSON, with the reason."""
        for name in type(model).model_fields:
            try:
                model.model_dump_json(include={name}, by_alias=False, round_trip=True, warnings="error")
            except (ValueError, TypeError, RecursionError) as reason:
                return f"{name}: cannot be converted to JSON: {format_error(reason)}"
        return f"cannot be converted to JSON: {format_error(error)}"

    @property
    def _where(self) -> str:
        return f"job {self.job}{self.signature}"

    def decode_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by name, converted from JSON values to the types of the signature.

        Raises:
            InvalidArguments: They do not fit the signature.
        """
        if not args and not kwargs and not self._has_arguments:
            return {}
        model = self._validate(args, kwargs, from_json=True)
        return {name: getattr(model, name) for name in type(model).model_fields}

    def _validate(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, from_json: bool, without: Sequence[str] = ()
    ) -> BaseModel:
        try:
            named = self.signature.bind_partial(*args).arguments if args else {}
        except TypeError:
            raise InvalidArguments(f"{self._where}: got {len(args)} positional arguments") from None
        repeated = sorted(set(named) & set(kwargs))
        if repeated:
            raise InvalidArguments(f"{self._where}: got multiple values for {', '.join(repeated)}")
        values = {**named, **kwargs}
        arguments = self._arguments
        if without:
            unknown = sorted(set(without) - arguments.model_fields.keys())
            if unknown:
                raise InvalidArguments(f"{self._where}: has no argument {', '.join(unknown)}")
            fields: dict[str, Any] = dict.fromkeys(without, (Any, None))
            arguments = create_model(f"{self.job}_call", __base__=arguments, **fields)
        try:
            if from_json:
                return arguments.model_validate_json(json.dumps(values), by_alias=True, by_name=True)
            return arguments.model_validate(values)
        except ValidationError as error:
            invalid = InvalidArguments(f"{self._where}: {describe_invalid(error)}")
            invalid.problems = list_problems(error)
            raise invalid from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, RecursionError) as error:
            # pydantic passes on what a validator raises, unless it is a ValueError or an AssertionError.
            raise InvalidArguments(f"{self._where}: a validator raised {format_error(error)}") from error

    def encode_result(self, result: Any) -> str:
        """Return a result as JSON text; see `ResultCodec.encode`."""
        return self._result.encode(result)

    def decode_result(self, text: str) -> Any:
        """Return a result from JSON text, in the type that the function declares.

        A result that does not fit, of another version of the job, is returned as JSON values.
        """
        try:
            return self._result.decode(text)
        except ValidationError:
            return json.loads(text)
