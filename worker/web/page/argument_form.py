"""The form of a job's arguments, made from their JSON Schema, and the arguments of a form that was sent."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from worker.web.page.form import Form
from worker.web.page.text import pretty, show

Kind = Literal["text", "number", "date", "moment", "time", "switch", "choice", "json"]

#: Prefix of the names of the fields, which keeps arguments apart from the other fields of the form.
PREFIX = "arg:"
#: The only field of a job whose arguments have no JSON Schema: all of them, as a JSON object.
WHOLE = "*"
_HINTS = {
    "date-time": "time, e.g. 2027-01-31T12:00:00Z",
    "date-time-local": "time without a zone, e.g. 2027-01-31T12:00:00",
    "time": "time of day, e.g. 12:00:00",
    "duration": "duration, e.g. P3D, P1DT12H, 36:00:00, or P4Y for 1,460 days",
    "uuid": "UUID",
    "uri": "URL",
    "email": "e-mail address",
}
_LIMITS = (
    ("minimum", "at least {}"),
    ("exclusiveMinimum", "more than {}"),
    ("maximum", "at most {}"),
    ("exclusiveMaximum", "less than {}"),
    ("multipleOf", "a multiple of {}"),
    ("minLength", "at least {} characters"),
    ("maxLength", "at most {} characters"),
    ("pattern", "like {}"),
)
_JSON_TYPES = {"array": "JSON list", "object": "JSON object", "string": "JSON text"}
_MOST_REFERENCES = 20
_FIRST_YEAR = 1000  # with fewer digits, browsers differ
#: Kinds whose fields the browser checks, by the format of the schema.
_KINDS: dict[str, Kind] = {"date": "date", "date-time": "moment", "date-time-local": "moment", "time": "time"}


@dataclass(frozen=True)
class ArgumentField:
    """The field of an argument.

    Attributes:
        name: name of the argument.
        kind: its kind.
        hint: type and limits, in words.
        about: the description of the argument.
        is_required: whether the argument has no default.
        is_nullable: whether it may be null: an empty field stands for it.
        default: the text that stands for its default.
        has_null_default: whether its default is null.
        choices: text and label of each value that may be chosen.
        text: what the field has at present.
        error: why the argument is not valid; empty if it is.
        has_zone: of a moment: whether its value has a time zone. Its text is in UTC.
    """

    name: str
    kind: Kind
    hint: str = ""
    about: str = ""
    is_required: bool = False
    is_nullable: bool = False
    default: str = ""
    has_null_default: bool = False
    choices: Sequence[tuple[str, str]] = ()
    text: str = ""
    error: str = ""
    has_zone: bool = False

    def read(self) -> tuple[bool, Any]:
        """Return whether the argument is given, and its JSON value. One that is as its default is not given.

        Raises:
            ValueError: the text is not JSON, and must be.
        """
        text = self.text.strip() if self.kind != "text" else self.text
        if text == self.default and not self.is_required:
            return False, None
        if self.kind in ("moment", "time"):
            text = _shorten(text)
            if text == self.default and not self.is_required:
                return False, None
            text = f"{text}Z" if self.has_zone and _is_naive(text) else text
        if text == "":
            if self.is_nullable:
                return True, None
            is_missing = self.is_required or self.kind not in ("text", "number", "switch")
            return not is_missing, None if is_missing else ""
        if self.kind == "number":
            return True, _read_number(text)
        if self.kind in ("json", "choice", "switch"):
            return True, json.loads(text)
        return True, text


def _shorten(text: str) -> str:
    """Return a time without seconds of zero, which some browsers leave out."""
    return text[:-3] if re.fullmatch(r"(?:[\d-]+T)?\d\d:\d\d:00", text) else text


def _write_time(text: str) -> str | None:
    """Return the text of a field for a time of day; None if such a field cannot show it."""
    return _shorten(text) if re.fullmatch(r"\d\d:\d\d(:\d\d)?", text) else None


def _is_naive(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is None
    except ValueError:
        return False


def _write_moment(text: str, *, has_zone: bool) -> str | None:
    """Return the text of a field for a moment; None if such a field cannot show it."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    if at.microsecond or (at.tzinfo is None) == has_zone or at.year < _FIRST_YEAR:
        return None
    return _shorten((at.astimezone(UTC) if has_zone else at).replace(tzinfo=None).isoformat())


def _read_number(text: str) -> Any:
    """Return a number; the text itself if it is none, which the validation of the job reports."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, int | float) else text


def make_fields(schema: Mapping[str, Any]) -> list[ArgumentField]:
    """Return the fields for the JSON Schema of a job's arguments, with their defaults."""
    properties = schema.get("properties")
    if properties is None:
        empty = () if schema.get("type") == "object" else (WHOLE,)
        return [ArgumentField(name, "json", "JSON object of all arguments", text="{}", default="{}") for name in empty]
    required = set(schema.get("required", ()))
    definitions = schema.get("$defs", {})
    return [_make_field(name, one, definitions, name in required) for name, one in properties.items()]


def _make_field(
    name: str, schema: Mapping[str, Any], definitions: Mapping[str, Any], is_required: bool
) -> ArgumentField:
    plain, is_nullable = _resolve(schema, definitions)
    kind, choices = _find_kind(plain, is_nullable)
    default = schema.get("default", plain.get("default"))
    has_default = not is_required and ("default" in schema or "default" in plain)
    text = _write(kind, default) if has_default and default is not None else ""
    has_zone = plain.get("format") == "date-time" and not _is_naive(text)
    if text and kind in ("moment", "time"):
        shown = _write_moment(text, has_zone=has_zone) if kind == "moment" else _write_time(text)
        kind, text = ("text", text) if shown is None else (kind, shown)
    if kind == "text" and not _fits_a_line(text):
        kind, text = "json", _write("json", default)
    return ArgumentField(
        name=name,
        kind=kind,
        hint="in UTC" if has_zone and kind == "moment" else _describe(plain, kind),
        about=str(schema.get("description") or plain.get("description") or ""),
        is_required=is_required,
        is_nullable=is_nullable,
        default=text,
        has_null_default=has_default and default is None,
        choices=choices,
        text=text,
        has_zone=has_zone and kind == "moment",
    )


def _resolve(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """Return the schema behind references and alternatives with null, and whether null is one of them."""
    is_nullable = False
    for _ in range(_MOST_REFERENCES):
        if "$ref" in schema:
            schema = definitions.get(str(schema["$ref"]).rpartition("/")[2], {})
        elif "anyOf" in schema:
            others = [one for one in schema["anyOf"] if one.get("type") != "null"]
            is_nullable = is_nullable or len(others) < len(schema["anyOf"])
            if {one.get("type") for one in others} == {"number", "string"} and any("pattern" in one for one in others):
                # a decimal number
                return {"type": "string", "decimal": True}, is_nullable
            if len(others) != 1:
                return {}, is_nullable
            [schema] = others
        else:
            break
    return schema, is_nullable


def _find_kind(schema: Mapping[str, Any], is_nullable: bool) -> tuple[Kind, tuple[tuple[str, str], ...]]:
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if values is not None:
        return "choice", tuple((json.dumps(one), one if isinstance(one, str) else json.dumps(one)) for one in values)
    match schema.get("type"):
        case "boolean" if is_nullable:
            return "choice", (("true", "yes"), ("false", "no"))
        case "boolean":
            return "switch", ()
        case "integer" | "number":
            return "number", ()
        case "string":
            return _KINDS.get(str(schema.get("format")), "text"), ()
        case _:
            return "json", ()


def _describe(schema: Mapping[str, Any], kind: Kind) -> str:
    found = []
    if kind == "number":
        found.append("whole number" if schema.get("type") == "integer" else "number")
    elif "decimal" in schema:
        found.append("decimal number")
    elif kind == "json":
        found.append(_JSON_TYPES.get(str(schema.get("type")), "JSON value"))
    elif kind == "moment":
        found.append("without a time zone")
    elif kind == "text" and schema.get("format") in _HINTS:
        found.append(_HINTS[schema["format"]])
    found += [words.format(schema[name]) for name, words in _LIMITS if name in schema]
    return ", ".join(found)


def _write(kind: Kind, value: Any) -> str:
    """Return the text of a field for a JSON value."""
    if kind in ("text", "date", "moment", "time", "number"):
        return value if isinstance(value, str) else json.dumps(value)
    if kind == "json":
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else pretty(value)
        return text if show(text) == text else json.dumps(value).replace("\x7f", r"\u007f")
    return json.dumps(value)


def _fits_a_line(text: str) -> bool:
    """Return whether a field of one line shows a text as it is, and sends it back unchanged."""
    return "\n" not in text and show(text) == text


def fill(fields: Sequence[ArgumentField], form: Form) -> list[ArgumentField]:
    """Return the fields with the texts of a form."""
    given = dict(form.pairs)  # the last counts: a box that is ticked, behind its hidden `false`
    return [replace(field, text=given.get(PREFIX + field.name, field.text).replace("\r\n", "\n")) for field in fields]


def read_arguments(fields: Sequence[ArgumentField]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the arguments that are given, as JSON values, and the problems of the others, both by name."""
    arguments: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for field in fields:
        try:
            is_given, value = field.read()
        except (ValueError, RecursionError) as error:
            problems[field.name] = f"it is not JSON: {error}"
            continue
        if is_given and field.name == WHOLE:
            if not isinstance(value, dict):
                problems[WHOLE] = "it is not a JSON object"
            else:
                arguments |= value
        elif is_given:
            arguments[field.name] = value
    return arguments, problems


def mark(fields: Sequence[ArgumentField], problems: Mapping[str, str]) -> list[ArgumentField]:
    """Return the fields with their problems beside them."""
    return [replace(field, error=problems.get(field.name, "")) for field in fields]
