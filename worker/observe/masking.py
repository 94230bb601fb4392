"""Masks the secrets of the settings, and passwords in URLs, in texts that are kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus, unquote, urlsplit

from worker.settings import Settings

_MASK = "***"
#: The password in the userinfo of a URL.
_URL_PASSWORD = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s:/@]*:)[^\s/@]+(@)")
#: Shorter passwords would mask parts of words.
_SHORTEST = 6


class Mask:
    """Replaces secrets in a text.

    Args:
        settings: the settings, with the URLs whose passwords are secret.
    """

    def __init__(self, settings: Settings) -> None:
        databases = [settings.database, *settings.databases.values()]
        urls = [settings.redis.url, *(url for one in databases for url in (one.url, one.replica_url) if url)]
        found = {form for url in urls for form in _password_forms(url)}
        ordered = sorted(found, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def __call__(self, text: str) -> str:
        """Return a text with `***` in place of each secret."""
        if "://" in text:
            text = _URL_PASSWORD.sub(rf"\1{_MASK}\2", text)
        return text if self._known is None else self._known.sub(_MASK, text)


def _password_forms(url: str) -> Iterator[str]:
    """Yield the forms in which the password of a URL may appear in a text."""
    try:
        raw = urlsplit(url).password or ""
    except ValueError:
        return
    plain = unquote(raw)
    if len(plain) >= _SHORTEST:
        yield from (raw, plain, repr(plain)[1:-1], quote(plain, safe=""), quote(plain), quote_plus(plain))
