"""Tables of the example jobs."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from sqlalchemy import BigInteger, CheckConstraint, DateTime, ForeignKey, Index, Numeric, Text, false, func, text, true
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """Metadata of the tables that the jobs work on."""


class Place(Base):
    """A populated place of GeoNames."""

    __tablename__ = "place"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
    country_code: Mapped[str] = mapped_column(index=True)
    population: Mapped[int] = mapped_column(BigInteger)
    latitude: Mapped[float]
    longitude: Mapped[float]
    timezone: Mapped[str]
    alternate_names: Mapped[list[str]] = mapped_column(ARRAY(Text))
    retired: Mapped[bool] = mapped_column(default=False, server_default=false())


class PlaceName(Base):
    """One name of a place, ready to be searched.

    It has no unique constraint, so that a batch that was done twice is visible.
    """

    __tablename__ = "place_name"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    place_id: Mapped[int] = mapped_column(index=True)
    name: Mapped[str]
    folded: Mapped[str]


class CountrySummary(Base):
    """The results of `summarise_countries`."""

    __tablename__ = "country_summary"

    country_code: Mapped[str] = mapped_column(primary_key=True)
    places: Mapped[int]
    population: Mapped[int] = mapped_column(BigInteger)
    names: Mapped[int]


class Account(Base):
    """Money, which must neither appear nor vanish."""

    __tablename__ = "account"
    __table_args__ = (CheckConstraint("balance >= 0", name="account_not_overdrawn"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    owner: Mapped[str]
    balance: Mapped[Decimal] = mapped_column(Numeric(14, 2))


class User(Base):
    """A user of the seed document."""

    __tablename__ = "users"
    __table_args__ = (Index("users_active_last_seen_at_idx", "last_seen_at", postgresql_where=text("is_active")),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str] = mapped_column(unique=True)
    is_active: Mapped[bool] = mapped_column(default=True, server_default=true())
    last_seen_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    score: Mapped[int] = mapped_column(default=0, server_default="0")
    posts: Mapped[list[Post]] = relationship(back_populates="author")


class Post(Base):
    """A post of a user."""

    __tablename__ = "posts"

    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    title: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now(), index=True)
    author: Mapped[User] = relationship(back_populates="posts")


class ArchivedPost(Base):
    """A post that `archive_old_posts` has moved."""

    __tablename__ = "archived_posts"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    author_id: Mapped[int]
    title: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class UserDigest(Base):
    """One row for each user, written by the streaming jobs."""

    __tablename__ = "user_digests"

    user_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    posts: Mapped[int]


class Log(Base):
    """The seed's table for raw SQL."""

    __tablename__ = "logs"

    id: Mapped[int] = mapped_column(primary_key=True)
    message: Mapped[str]
