"""Where settings come from: `settings.toml`, then the environment, then the command line.

A later source overrides an earlier one. Each value remembers its source, so that an error can name it.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from worker.errors import SettingsError
from worker.settings.model import DATABASES, Settings, sections
from worker.settings.reference import field_names

DEFAULT_FILE = "settings.toml"
ENV_PREFIX = "LONGHAUL_"
_ENV_DELIMITER = "__"
_SHORT_NAMES = {"DATABASE_URL": ("database", "url"), "REDIS_URL": ("redis", "url")}


class Origins(dict[str, str]):
    """The source of each setting (`section.field`): a file name, `environment NAME`, `command line` or `default`."""


def load_settings(
    file: str | Path | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings in force.

    Args:
        file: A TOML file. Default: `$LONGHAUL_SETTINGS`, else `settings.toml`, which may be absent.
        overrides: Values of the command line, by section and field.
        environment: Environment variables. Default: those of this process.

    Raises:
        SettingsError: A key is unknown, a value has the wrong type, or a file cannot be read. The message names the
            source.
    """
    return load_with_origins(file, overrides, environment)[0]


def load_with_origins(
    file: str | Path | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[Settings, Origins]:
    """Return the settings in force, and the source of each. Arguments and errors are those of `load_settings`."""
    env = os.environ if environment is None else environment
    layers = [
        *_file_layer(file, env),
        *_environment_layer(env),
        *(("command line", section, field, value) for section, field, value in _flatten(overrides or {})),
    ]
    origins = Origins(dict.fromkeys(field_names(), "default"))
    tree: dict[str, dict[str, Any]] = {}
    for origin, section, field, value in layers:
        if section == DATABASES:
            tree.setdefault(section, {}).setdefault(field, {}).update(value)
            origins |= {f"{section}.{field}.{key}": origin for key in value}
            continue
        _check_name(origin, section, field)
        tree.setdefault(section, {})[field] = value
        origins[f"{section}.{field}"] = origin
    try:
        return Settings.model_validate(tree), origins
    except ValidationError as error:
        raise SettingsError(_explain(error, origins)) from None


def _flatten(tree: Mapping[str, Any], origin: str = "command line") -> Iterator[tuple[str, str, Any]]:
    for section, fields in tree.items():
        if section not in (*sections(), DATABASES):
            raise SettingsError(f"{origin}: unknown section [{section}]{_nearest(section, list(sections()))}")
        if not isinstance(fields, Mapping):
            raise SettingsError(f"{origin}: {section} is a section: write [{section}], and its keys below it")
        for field, value in fields.items():
            if section == DATABASES:
                _check_database(origin, field, value)
            yield section, field, value


def _check_database(origin: str, name: str, fields: Any) -> None:
    """Raise `SettingsError` unless the fields of `[databases.NAME]` are those of `[database]`."""
    if not isinstance(fields, Mapping):
        section = f"{DATABASES}.{name}"
        raise SettingsError(f"{origin}: {section} is a section: write [{section}], and its url below it")
    known = list(sections()["database"].model_fields)
    for key in fields:
        if key not in known:
            prefix = f"{DATABASES}.{name}."
            raise SettingsError(f"{origin}: unknown key {prefix}{key}{_nearest(key, known, prefix=prefix)}")


def _file_layer(file: str | Path | None, env: Mapping[str, str]) -> Iterator[tuple[str, str, str, Any]]:
    named = file or env.get(f"{ENV_PREFIX}SETTINGS")
    path = Path(named or DEFAULT_FILE)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if named:
            raise SettingsError(f"{path}: no such settings file") from None
        return
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot read the file: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None
    for section, field, value in _flatten(tree, str(path)):
        yield str(path), section, field, value


def _environment_layer(env: Mapping[str, str]) -> Iterator[tuple[str, str, str, Any]]:
    for variable, (section, field) in _SHORT_NAMES.items():
        if env.get(variable):
            yield f"environment {variable}", section, field, env[variable]
    for variable, raw in env.items():
        if not variable.startswith(ENV_PREFIX) or _ENV_DELIMITER not in variable:
            continue
        section, _, field = variable.removeprefix(ENV_PREFIX).lower().partition(_ENV_DELIMITER)
        origin = f"environment {variable}"
        if section == DATABASES:
            name, _, key = field.partition(_ENV_DELIMITER)
            _check_database(origin, name, {key: raw})
            yield origin, section, name, {key: raw}
            continue
        _check_name(origin, section, field)
        yield origin, section, field, _decode(sections()[section].model_fields[field].annotation, raw)


def _decode(annotation: Any, raw: str) -> Any:
    """Return a variable as JSON if the setting is a list or a mapping (a list also as `a, b`), else as its text."""
    if get_origin(annotation) not in (list, dict):
        return raw
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        is_list = get_origin(annotation) is list
        return [part.strip() for part in raw.split(",") if part.strip()] if is_list else raw


def _check_name(origin: str, section: str, field: str) -> None:
    known = sections()
    if section not in known:
        raise SettingsError(f"{origin}: unknown section {section!r}{_nearest(section, list(known))}")
    fields = list(known[section].model_fields)
    if field not in fields:
        nearest = _nearest(field, fields, prefix=f"{section}.")
        raise SettingsError(f"{origin}: unknown key {section}.{field}{nearest}")


def _nearest(word: str, known: list[str], prefix: str = "") -> str:
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    return f"; did you mean {prefix}{found[0]}?" if found else ""


def _explain(error: ValidationError, origins: Origins) -> str:
    lines = []
    for problem in error.errors():
        parts = 3 if problem["loc"][:1] == (DATABASES,) else 2
        name = ".".join(str(part) for part in problem["loc"][:parts])
        origin = origins.get(name, "settings")
        shown = problem.get("input")
        message = problem["msg"].removeprefix("Value error, ")
        if name.endswith("url") or isinstance(shown, dict | BaseModel):
            lines.append(f"{origin}: {name}: {message}" if name else f"settings: {message}")
        else:
            lines.append(f"{origin}: {name} = {shown!r}: {message}")
    return "\n".join(lines)
