"""A statement in the form that the driver takes.

It is compiled and its own values are bound once a step; only the cursor's values are bound for each batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Executable, TupleType
from sqlalchemy.sql import ClauseElement


class CompiledStatement:
    """SQL text and arguments of a statement.

    `schema_translate_map` in the execution options of the statement, or of its connection, is applied.

    Args:
        statement: any `select()`, `insert()`, `update()` or `delete()`.
        dialect: the dialect of the connection that the statement will run on.
        options: the execution options of that connection.
    """

    def __init__(self, statement: Executable, dialect: Any, options: Mapping[str, Any] | None = None) -> None:
        assert isinstance(statement, ClauseElement)  # noqa: S101
        known = {**(options or {}), **statement.get_execution_options()}
        translated: dict[str, Any] = {}
        if schemas := known.get("schema_translate_map"):
            translated = {"schema_translate_map": schemas, "render_schema_translate": True}
        self.compiled: Any = statement.compile(dialect=dialect, **translated)
        self._sql = ""
        self._arguments: list[Any] = []
        self._moving: list[tuple[int, str, Any]] = []  # position, name and processor of a value that changes

    @property
    def needs_context(self) -> bool:
        """Whether SQLAlchemy computes values at each execution, e.g. with a Python function as `onupdate`."""
        return bool(getattr(self.compiled, "prefetch", None))

    def bind(self, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
        """Return the SQL and its arguments in order, as the driver takes them.

        Args:
            values: values by name. Every call must give the same names.
        """
        if not self._sql:
            self._expand(values)
        for position, name, process in self._moving:
            value = values[name]
            self._arguments[position] = value if process is None else process(value)
        return self._sql, self._arguments

    def _expand(self, values: Mapping[str, Any]) -> None:
        """Resolve the parts that depend on the statement's own values: the length of an IN, literals, processors."""
        state = self.compiled.construct_expanded_state(dict(values))
        processors = {**self._processors(), **state.processors}
        escaped = self.compiled.escaped_bind_names  # names with spaces, %, dots or brackets
        for position, name in enumerate(state.positiontup or ()):
            process = processors.get(name)
            value = state.parameters[escaped.get(name, name)]
            self._arguments.append(value if process is None else process(value))
            if name in values:
                self._moving.append((position, name, process))
        self._sql = state.statement

    def _processors(self) -> dict[str, Any]:
        """Return the function that converts a Python value into the driver's, by the name of the parameter."""
        dialect = self.compiled.dialect
        return {
            name: parameter.type.dialect_impl(dialect).bind_processor(dialect)
            for parameter, name in self.compiled.bind_names.items()
            if not isinstance(parameter.type, TupleType)  # its values are expanded, each with a processor of its own
        }
