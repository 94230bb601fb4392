"""Reading one page after the other in a batch's transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Select

from worker.batch.collector import suspended
from worker.batch.compiled import CompiledStatement
from worker.batch.page import Page, Row, RowShape
from worker.batch.transaction import BatchTransaction


class PageReader:
    """A select that is read again and again with another cursor: compiled once, and prepared as seldom as can be.

    Args:
        shape: what its rows look like.
        statement: the select, with the key's columns and conditions.
        dialect: of the connection.
    """

    def __init__(self, shape: RowShape, statement: Select[Any], dialect: Any) -> None:
        self._shape = shape
        self._statement = statement
        self._dialect = dialect
        self._driver_statement = CompiledStatement(statement, dialect) if shape.may_be_plain else None
        self._prepared: Any = None

    async def read(self, transaction: BatchTransaction, values: Mapping[str, Any]) -> Page:
        """Return the rows after the cursor."""
        if self._driver_statement is not None:
            sql, arguments = self._driver_statement.bind(values)
            raw = await transaction.driver()
            if self._prepared is None or not transaction.keeps_prepared:
                prepared = await raw.prepare(sql, record_class=Row)
                if self._shape.fits(self._driver_statement, prepared.get_attributes(), self._dialect):
                    self._prepared = prepared
                else:
                    self._driver_statement = self._prepared = None
            if self._prepared is not None:
                with suspended():
                    found = await self._prepared.fetch(*arguments)
                return self._shape.page(found)
        with suspended():
            result = await transaction.session.execute(self._statement, values)
            if self._shape.is_entity:
                result = result.unique()  # joinedload of a collection repeats its owner
            return self._shape.page(result.all())
