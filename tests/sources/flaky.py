"""A file system of fsspec whose next read behind a byte fails once, as when a connection is reset."""

from __future__ import annotations

import io
from typing import Any, ClassVar

import fsspec

#: Bytes that can be read before a failure.
READABLE = 20_000


class _FlakyFile(io.RawIOBase):
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        self._at = place + (0, self._at, len(self._data))[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, into: Any) -> int:
        if self._at >= READABLE and FlakyFiles.failures:
            FlakyFiles.failures -= 1
            raise ConnectionResetError("connection reset by peer")
        part = self._data[self._at : self._at + min(len(into), 8_192)]
        into[: len(part)] = part
        self._at += len(part)
        return len(part)


class FlakyFiles(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """The file system of `flaky://file`.

    Attributes:
        data: the content of its file.
        failures: the number of reads that fail from now on.
    """

    protocol = "flaky"
    data: ClassVar[bytes] = b""
    failures: ClassVar[int] = 0

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(self.data), "type": "file", "mtime": 1}

    def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return io.BufferedReader(_FlakyFile(self.data), 8_192)


fsspec.register_implementation("flaky", FlakyFiles, clobber=True)
