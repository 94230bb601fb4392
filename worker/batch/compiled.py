"""A statement as the driver takes it: compiled once a step, its own values bound once, the cursor's at each batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Executable, TupleType
from sqlalchemy.sql import ClauseElement


class CompiledStatement:
    """SQL text and arguments of a statement.

    Args:
        statement: any `select()`, `update()` or `delete()`.
        dialect: of the connection that it will run on.
    """

    def __init__(self, statement: Executable, dialect: Any) -> None:
        assert isinstance(statement, ClauseElement)  # noqa: S101
        self.compiled: Any = statement.compile(dialect=dialect)
        self._sql = ""
        self._arguments: list[Any] = []
        self._moving: list[tuple[int, str, Any]] = []  # position, name and processor of a value that changes

    @property
    def needs_context(self) -> bool:
        """Whether values are made by SQLAlchemy at each execution, e.g. by a Python function as `onupdate`."""
        return bool(getattr(self.compiled, "prefetch", None))

    def bind(self, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
        """Return the SQL and its arguments in order, as database values.

        Args:
            values: by name; the same names at each call.
        """
        if not self._sql:
            self._expand(values)
        for position, name, process in self._moving:
            value = values[name]
            self._arguments[position] = value if process is None else process(value)
        return self._sql, self._arguments

    def _expand(self, values: Mapping[str, Any]) -> None:
        """Settle what depends on the statement's own values: the length of an IN, literals, processors."""
        state = self.compiled.construct_expanded_state(dict(values))
        processors = {**self._processors(), **state.processors}
        for position, name in enumerate(state.positiontup or ()):
            process = processors.get(name)
            value = state.parameters[name]
            self._arguments.append(value if process is None else process(value))
            if name in values:
                self._moving.append((position, name, process))
        self._sql = state.statement

    def _processors(self) -> dict[str, Any]:
        """Return what turns a Python value into the driver's, by the name of the parameter."""
        dialect = self.compiled.dialect
        return {
            name: parameter.type.dialect_impl(dialect).bind_processor(dialect)
            for parameter, name in self.compiled.bind_names.items()
            if not isinstance(parameter.type, TupleType)  # its values are expanded, each with a processor of its own
        }
