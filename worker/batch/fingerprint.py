"""The fingerprint of a walk: it covers everything that determines the rows and their order.

A deploy in the middle of a walk may add a column to the model, an option, a comment or a hint to the statement, or
another name to an alias. These changes do not affect the meaning of the cursor. FROM, joins, WHERE with its values, and
the key do.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from sqlalchemy import CTE, Alias, ClauseElement, Select, Subquery, literal_column
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.sql import visitors

from worker.db.statement_internals import read_select_clauses, without_options, without_true

_DIALECT = asyncpg_dialect()  # type: ignore[no-untyped-call]
#: A comment, or a quoted text or name, in which nothing is one.
_COMMENT_OR_QUOTED = re.compile(
    r"""(?P<comment> /\*.*?\*/ | --[^\n]* )
      | [eE]'(?:[^'\\]|\\.|'')*'
      | '(?:[^']|'')*'
      | "(?:[^"]|"")*"
      | \$(?P<tag>[A-Za-z_]\w*|)\$.*?\$(?P=tag)\$
    """,
    re.DOTALL | re.VERBOSE,
)


def fingerprint(statement: ClauseElement) -> str:
    """Return a statement as SQL in one line, with neutral names for its aliases and a digest of its values.

    Values of dates, times and intervals, and of lists and ranges of these, are omitted: jobs compute them from the
    clock, so they differ by attempt. A digest instead of the values keeps possible secrets out of the ledger and
    out of error messages.
    """
    if isinstance(statement, Select):
        statement = without_true(statement)
    compiled = statement.compile(dialect=_DIALECT)
    plain = " ".join(_without_comments(str(compiled)).split())
    text = _rename_aliases(plain, statement, getattr(compiled, "anon_map", {}))
    values = [_count_moments(value) for value in compiled.params.values() if not _is_moment(value)]
    if not values:
        return text
    digest = hashlib.sha256(json.dumps([_stable(value) for value in values]).encode()).hexdigest()
    return f"{text} [values {digest[:16]}]"


def select_fingerprint(statement: Select[Any]) -> str:
    """Return the fingerprint of a select with its own order: it includes columns only if they determine the rows."""
    clauses = read_select_clauses(statement)
    if clauses.distinct or clauses.group_by or clauses.having or clauses.extended:
        return fingerprint(statement)
    rows: Select[Any] = without_options(statement).with_only_columns(literal_column("1"), maintain_column_froms=True)
    return fingerprint(rows)


def _is_moment(value: Any) -> bool:
    """Return whether a value is a moment, a duration, or a range of such."""
    if isinstance(value, Range):
        bounds = [bound for bound in (value.lower, value.upper) if bound is not None]
        return bool(bounds) and all(map(_is_moment, bounds))
    return isinstance(value, date | time | timedelta)


def _count_moments(value: Any) -> Any:
    """Return a value, or the number of moments if it is a list of these."""
    if isinstance(value, list | tuple | set | frozenset) and value and all(map(_is_moment, value)):
        return f"{len(value)} moments"
    return value


def _without_comments(sql: str) -> str:
    """Return SQL without its comments; hints of extensions are comments, too."""
    return _COMMENT_OR_QUOTED.sub(lambda match: " " if match["comment"] else match[0], sql)


def _rename_aliases(text: str, statement: ClauseElement, anonymous: Mapping[str, str]) -> str:
    """Replace the names of aliases by t1, t2, ... in the order of their first use.

    Args:
        text: The statement as SQL.
        statement: The statement.
        anonymous: The names that SQLAlchemy has made for aliases without a name.
    """
    names = {
        str(element.name) for element in visitors.iterate(statement) if isinstance(element, Alias | Subquery | CTE)
    }
    named = {name % anonymous if name.startswith("%(") else name for name in names}
    quote = _DIALECT.identifier_preparer.quote
    quoted = sorted({quote(name) for name in named}, key=len, reverse=True)
    if not quoted:
        return text
    pattern = re.compile(r'(?<![\w".$])(' + "|".join(map(re.escape, quoted)) + r')(?![\w"$])')
    order: dict[str, str] = {}
    return pattern.sub(lambda match: order.setdefault(match[1], f"t{len(order) + 1}"), text)


def _stable(value: Any) -> Any:
    """Return a value as JSON that is the same in every process."""
    match value:
        case None | bool() | int() | str():
            return value
        case float() | Decimal() | UUID():
            return f"{type(value).__name__} {value}"
        case bytes() | bytearray() | memoryview():
            return f"bytes {bytes(value).hex()}"
        case Enum():
            return f"enum {value.name}"
        case list() | tuple():
            return [_stable(one) for one in value]
        case set() | frozenset():
            return sorted((_stable(one) for one in value), key=str)
        case Mapping():
            return {str(name): _stable(one) for name, one in sorted(value.items(), key=str)}
    return type(value).__qualname__ if " at 0x" in (text := repr(value)) else text
