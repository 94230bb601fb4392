"""The reference of all settings: names, types, defaults and meanings."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from worker.settings.model import sections


def field_names() -> list[str]:
    """Return every setting as `section.field`."""
    return [f"{section}.{field}" for section, model in sections().items() for field in model.model_fields]


def describe_type(section: str, field: str) -> str:
    """Return the type of a setting as people write it, e.g. `float`, `str | None` or `once | skip`."""
    return _describe(sections()[section].model_fields[field].annotation)


def _describe(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return " | ".join(str(choice) for choice in get_args(annotation))
    if origin is Annotated:
        return _describe(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return " | ".join(_describe(part) for part in get_args(annotation))
    if origin is dict:
        return f"dict[{', '.join(_describe(part) for part in get_args(annotation))}]"
    if annotation is NoneType:
        return "None"
    return getattr(annotation, "__name__", str(annotation)) if origin is None else str(annotation)


def describe_all() -> str:
    """Return a Markdown table of each section: the reference in docs/reference/settings.md."""
    lines: list[str] = []
    for section, model in sections().items():
        lines += [f"## {section}", "", (model.__doc__ or "").strip(), "", "| key | type | default | meaning |"]
        lines.append("| --- | --- | --- | --- |")
        for name, field in model.model_fields.items():
            default = "" if field.default is None else f"`{field.default}`"
            kind = describe_type(section, name).replace("|", "\\|")
            lines.append(f"| `{name}` | {kind} | {default} | {field.description} |")
        lines.append("")
    lines += ["## databases.NAME", "", "Other databases, which jobs read with `worker.sources.Query`. They have the"]
    lines += ["keys of `[database]`, such as `url` and `replica_url`. In the environment:"]
    lines += ["`LONGHAUL_DATABASES__NAME__URL`.", ""]
    return "\n".join(lines)
