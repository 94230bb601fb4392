"""Static files: read once, with an address that changes with their contents."""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from worker.web.problems import not_found

FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
_FOREVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"


class Assets:
    """The files of `static/`. All have one version, so modules find each other by relative imports.

    Attributes:
        version: part of the address of each file.
    """

    def __init__(self) -> None:
        self._files = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in _TYPES}
        self._etags = {name: f'"{hashlib.sha256(data).hexdigest()[:20]}"' for name, data in self._files.items()}
        self.version = hashlib.sha256("".join(self._etags.values()).encode()).hexdigest()[:12]

    def respond(self, request: Request, version: str, name: str) -> Response:
        """Return a file, or 304 if the browser has it.

        Raises:
            Problem: there is no such file.
        """
        if name not in self._files:
            raise not_found("there is no such file")
        etag = self._etags[name]
        headers = {"ETag": etag, "Cache-Control": _FOREVER if version == self.version else _ASK_AGAIN}
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self._files[name], headers=headers, media_type=_TYPES[Path(name).suffix])
