"""The fields that a form has sent."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.requests import Request

from worker.web.problems import Problem

_MOST_FIELDS = 5_000


class Form:
    """The fields of a form.

    Args:
        pairs: names and values.
    """

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs

    def get(self, name: str) -> str:
        """Return the first value of a field; an empty text if there is none."""
        return next((value for key, value in self.pairs if key == name), "")


async def read_form(request: Request, max_bytes: int) -> Form:
    """Return the fields that a form has sent.

    Raises:
        Problem: it is too large, or no form.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/x-www-form-urlencoded":
        raise Problem(415, "not-a-form", "send the form as application/x-www-form-urlencoded")
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > max_bytes:
            raise Problem(413, "body-too-large", f"the form exceeds web.max_body_bytes = {max_bytes:,}")
    try:
        text = bytes(found).decode("ascii")
        return Form(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS))
    except ValueError:
        raise Problem(400, "invalid-form", "the form is not valid, or has too many fields") from None
