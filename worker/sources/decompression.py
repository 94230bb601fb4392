"""Reads gzip and zstd, found by their first bytes, and tells a truncated file from a complete one."""

from __future__ import annotations

import io
import zlib
from typing import IO, Any, Literal

from worker.errors import UnsupportedStatement
from worker.sources.location import load_extra

Compression = Literal["infer", "gzip", "zstd"] | None

# A piece of zstd can hold 40,000 times its size, one of gzip 1,000 times: this limits the memory of one step.
_PIECE_BYTES = 1 << 12
_MAGIC: dict[bytes, Compression] = {b"\x1f\x8b\x08": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
#: Ends the magic number of a frame of zstd that holds no data, such as the one that pzstd begins a file with.
_SKIPPABLE = b"\x2a\x4d\x18"


def check_compression(compression: Any) -> None:
    """Raise `UnsupportedStatement` unless an argument names a known compression."""
    if compression not in (None, "infer", "gzip", "zstd"):
        raise UnsupportedStatement(f"compression={compression!r}: give 'gzip', 'zstd', 'infer' or None")


def find_compression(head: bytes, compression: Compression) -> Compression:
    """Return the compression of a file by its first bytes, unless one is given."""
    if compression != "infer":
        return compression
    if head[1:] == _SKIPPABLE and head[0] & 0xF0 == 0x50:
        return "zstd"
    return next((found for magic, found in _MAGIC.items() if head.startswith(magic)), None)


def decompress(file: IO[bytes], compression: Compression) -> io.BufferedReader:
    """Return a file that reads the content of a compressed one."""
    return io.BufferedReader(_Decompressed(file, compression), buffer_size=1 << 18)


class _Decompressed(io.RawIOBase):
    """The content of all members of a gzip file, or of all frames of a zstd file."""

    def __init__(self, file: IO[bytes], compression: Compression) -> None:
        super().__init__()
        self._file = file
        self._is_gzip = compression == "gzip"
        self._zstd = None if self._is_gzip else load_extra("zstandard", "zstd", "a file that is compressed by zstd")
        self._member: Any = None  # None between two members
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            piece = self._file.read(_PIECE_BYTES)
            if not piece:
                if self._member is not None:
                    raise EOFError("its compressed data ends too early: the file was truncated, or is still written")
                return 0
            self._output = memoryview(b"".join(self._decompress(piece)))
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _decompress(self, piece: bytes) -> list[bytes]:
        found = []
        while piece:
            if self._member is None:
                if self._is_gzip:
                    piece = piece.lstrip(b"\0")  # gzip allows zeros behind a member
                    if not piece:
                        break
                self._member = self._open_member()
            try:
                found.append(self._member.decompress(piece))
            except Exception as error:  # zlib.error, or that of zstandard
                raise EOFError(f"its compressed data is damaged: {error}") from error
            if not self._member.eof:
                break
            piece, self._member = self._member.unused_data, None
        return found

    def _open_member(self) -> Any:
        if self._zstd is None:
            return zlib.decompressobj(zlib.MAX_WBITS | 16)
        return self._zstd.ZstdDecompressor(max_window_size=1 << 27).decompressobj()

    def close(self) -> None:
        try:
            self._file.close()
        finally:
            super().close()
