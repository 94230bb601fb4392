"""A signup with FastAPI and SQLAlchemy: the user and the run of the welcome mail are one transaction."""

from __future__ import annotations

from fastapi import FastAPI, HTTPException
from sqlalchemy import Text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from examples.jobs import send_welcome_mail
from worker import Client


class Base(DeclarativeBase):
    """The application's models."""


class Member(Base):
    """A user."""

    __tablename__ = "member"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    email: Mapped[str] = mapped_column(Text, unique=True)


def make_app(engine: AsyncEngine, client: Client) -> FastAPI:
    """Return the application."""
    app = FastAPI()
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    @app.post("/signup")
    async def sign_up(name: str, email: str) -> dict[str, str | int]:
        try:
            async with sessions.begin() as session:  # commits at the end, rolls back if the block raises
                member = Member(name=name, email=email)
                session.add(member)
                await session.flush()
                run = await client.enqueue_in(session, send_welcome_mail, user_id=member.id, name=name)
                if "@" not in email:
                    raise HTTPException(422, "not a mail address")
        except IntegrityError:
            raise HTTPException(409, "this address has signed up") from None
        return {"member": member.id, "run": run.id}

    return app
