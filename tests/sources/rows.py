"""The row type of the files of these tests."""

from __future__ import annotations

from pydantic import BaseModel


class UserRow(BaseModel):
    """A row."""

    id: int
    name: str
