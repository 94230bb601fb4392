"""Reads the lines of a file behind a verified place.

The cursor holds the place, and a digest of everything before it: a chain of SHA-256 over blocks of one MiB, and the
SHA-256 of the last, incomplete block. So a restart reads only that block again, and can continue the digest. It reads
everything before the place again only if size or modification time of the file differ from those in the cursor.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import os
from collections import deque
from typing import Any

from worker.errors import CursorMismatch, UnsupportedStatement
from worker.sources.decompression import Compression, decompress, find_compression
from worker.sources.location import Location, read_version

BLOCK_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 26
_BOMS = {"utf-8": codecs.BOM_UTF8, "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
_BOMS |= {"utf-32-le": codecs.BOM_UTF32_LE, "utf-32-be": codecs.BOM_UTF32_BE}


#: The bytes that may be around a line feed: byte order marks, and the rest of a code unit.
_MARKS_AND_ZEROS = b"\0\xef\xbb\xbf\xff\xfe"


def find_codec(encoding: str) -> str:
    """Return the canonical name of an encoding.

    Raises:
        UnsupportedStatement: Python does not know it, or its lines do not end with a line feed.
    """
    try:
        name = codecs.lookup(encoding).name
        line_end = "\n".encode(name)
    except (LookupError, TypeError, ValueError):  # e.g. "hex", which encodes no text
        raise UnsupportedStatement(
            f"encoding {encoding!r} is unknown: give one of Python's, such as 'utf-8', 'cp1252' or 'utf-16'"
        ) from None
    if name == "idna" or line_end.strip(_MARKS_AND_ZEROS) != b"\n":
        raise UnsupportedStatement(
            f"encoding {encoding!r} has no line feed at the end of a line: convert the file to UTF-8"
        )
    return name


class RollingDigest:
    """The digest of a growing text, which can be continued from its dump and the text's last block."""

    def __init__(self, chain: str = "") -> None:
        self._chain = bytes.fromhex(chain)
        self._block = hashlib.sha256()
        self._size = 0  # bytes of the incomplete block

    def update(self, data: bytes) -> None:
        """Append data."""
        rest = memoryview(data)
        while rest:
            piece = rest[: BLOCK_BYTES - self._size]
            self._block.update(piece)
            self._size += len(piece)
            rest = rest[len(piece) :]
            if self._size == BLOCK_BYTES:
                self._chain = hashlib.sha256(self._chain + self._block.digest()).digest()
                self._block, self._size = hashlib.sha256(), 0

    def dump(self) -> list[str]:
        """Return the chain of the complete blocks and the digest of the incomplete one."""
        return [self._chain.hex(), self._block.hexdigest()]


class LineReader:
    """The lines of a file as bytes, with their line ends, and the place behind the lines that were accepted.

    Args:
        location: The file.
        encoding: The canonical name of its encoding.
        compression: Its compression; "infer" to find it by the first bytes.

    Attributes:
        byte: The number of accepted bytes of the content, after decompression.
        line: The number of the next line, from 1.
        codec: The encoding without a byte order mark.

    Raises:
        SourceUnavailable: The file cannot be read.
        UnsupportedStatement: It has another encoding.
    """

    def __init__(self, location: Location, encoding: str, compression: Compression) -> None:
        self._location = location
        raw, self._size, self._version = location.open()
        self._raw = self._file = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)  # type: ignore[type-var]
        self.byte, self.line = 0, 1
        self._digest = RollingDigest()
        self._accepted: list[bytes] = []
        self._given_back: deque[bytes] = deque()
        self._tail = b""  # the last bytes that were read; a line without its end may not go on
        try:
            self._compression = find_compression(self._file.peek(4)[:4], compression)
            if self._compression is not None:
                self._file = decompress(self._raw, self._compression)
            self.codec, mark = self._find_mark(encoding, self._file.peek(4)[:4])
            self._newline = "\n".encode(self.codec)
            self._accepted.append(self._file.read(len(mark)))
            self.byte = len(mark)
        except Exception as error:
            self.close()
            raise location.unavailable(error) from error

    def _find_mark(self, encoding: str, head: bytes) -> tuple[str, bytes]:
        """Return the encoding without a byte order mark, and the mark that the file begins with."""
        codec = encoding.removesuffix("-sig")
        begun = [name for name, mark in _BOMS.items() if head.startswith(mark)]
        found = begun[-1] if begun else None  # UTF-32's mark begins with that of UTF-16
        if codec in ("utf-16", "utf-32"):
            codec = found if found is not None and found.startswith(codec) else f"{codec}-le"
        if found is not None and found != codec and codec in ("utf-8", "ascii"):
            raise UnsupportedStatement(
                f"{self._location.name} begins with the byte order mark of {found}: set encoding={found[:-3]!r}"
                if found != "utf-8"
                else f"{self._location.name} begins with the byte order mark of UTF-8: set encoding='utf-8'"
            )
        return codec, _BOMS[codec] if found == codec else b""

    def read_line(self) -> bytes:
        """Return the next line with its line end; empty at the end.

        Raises:
            SourceUnavailable: The file cannot be read any more.
            UnsupportedStatement: The line is too long.
        """
        if self._given_back:
            return self._given_back.popleft()
        try:
            line = self._file.readline(MAX_LINE_BYTES)
            unit = len(self._newline)
            if unit > 1:
                while len(line) < MAX_LINE_BYTES:
                    line += self._file.read(-len(line) % unit)  # a code unit ends behind its byte 0x0A
                    if line.endswith(self._newline) or not (more := self._file.readline(MAX_LINE_BYTES)):
                        break
                    line += more
        except Exception as error:  # the errors of file systems and of damaged archives
            raise self._location.unavailable(error, f" at byte {self.byte}, line {self.line}") from error
        if line and self._tail and self._tail != self._newline:
            return self._read_behind_end(line)
        self._tail = line[-unit:] or self._tail
        if len(line) >= MAX_LINE_BYTES:
            raise UnsupportedStatement(
                f"{self._location.name}, line {self.line}: longer than {MAX_LINE_BYTES >> 20} MiB: not a file of lines"
            )
        return line

    def _read_behind_end(self, line: bytes) -> bytes:
        """Return the next line of a file that has grown behind a line without a line feed, which was its last one.

        Raises:
            CursorMismatch: The line itself has grown: a part of it was taken for the whole.
        """
        if line not in (self._newline, "\r\n".encode(self.codec)):
            raise CursorMismatch(
                f"{self._location.name}, line {self.line - 1}: its end was written after it was read, so that a part "
                f"of it is done as a whole. Append whole lines, each with its line feed; undo the effect of that row, "
                f"and start over: worker retry RUN --from-start"
            )
        self._tail = self._newline
        self._accepted.append(line)
        self.byte += len(line)
        return self.read_line()

    def ensure_unchanged(self, run_id: str) -> None:
        """Raise `CursorMismatch` at the end if a file of this machine was truncated or rewritten while it was read."""
        if self._location.is_url or read_version(os.fstat(self._raw.fileno())) == self._version:
            return
        again = LineReader(self._location, self.codec, self._compression)
        try:
            again.resume(run_id, self.dump())
        finally:
            again.close()

    def give_back(self, lines: list[bytes]) -> None:
        """Return lines that were read last, to be read again."""
        self._given_back.extendleft(reversed(lines))

    def accept(self, lines: list[bytes]) -> None:
        """Move the place behind lines that were read."""
        self._accepted += lines
        self.byte += sum(map(len, lines))
        self.line += len(lines)

    @property
    def share(self) -> float | None:
        """The part of the file that was read, from 0 to 1; None if its size is unknown."""
        if self._size is None:
            return None
        try:
            done = self.byte if self._compression is None else self._raw.tell()
        except (OSError, ValueError):
            return None
        return min(1.0, done / self._size) if self._size else 1.0

    def dump(self) -> dict[str, Any]:
        """Return the cursor of the place."""
        self._flush()
        return {"byte": self.byte, "line": self.line, "digest": self._digest.dump(), "version": self._version}

    def _flush(self) -> None:
        self._digest.update(b"".join(self._accepted))
        self._accepted.clear()

    def resume(self, run_id: str, cursor: Any) -> None:
        """Go to the place of a cursor, and check that everything before it is unchanged.

        Raises:
            CursorMismatch: The file was truncated, or changed before the place.
        """
        cure = f"restore it, or start over: worker retry {run_id} --from-start"
        name = self._location.name
        try:
            done, line, digest, version = (cursor[key] for key in ("byte", "line", "digest", "version"))
        except (KeyError, TypeError):
            raise CursorMismatch(f"{name}: the cursor {cursor!r} is of another version; {cure}") from None
        try:
            self._go_to(done, digest, is_unchanged=version is not None and version == self._version)
        except Exception as error:
            raise self._location.unavailable(error, f" up to byte {done}") from error
        if self.byte < done:
            raise CursorMismatch(
                f"{name} has {self.byte} bytes of content, but {done} are done: it was truncated; {cure}"
            )
        if self._digest.dump() != digest:
            raise CursorMismatch(f"{name}: the first {done} bytes, which are done, have changed; {cure}")
        self.line = line

    def can_skip_to(self, byte: int) -> bool:
        """Return whether a place lies behind this one, or is this one."""
        return not self._given_back and byte >= self.byte

    def skip_to(self, byte: int, line: int) -> bool:
        """Go to a place; see `can_skip_to`. Return whether a line with this number begins there."""
        left, number, behind = byte - self.byte, self.line, self._newline
        while left > 0 and (piece := self._file.read(min(BLOCK_BYTES, left))):
            left -= len(piece)
            number += piece.count(self._newline)
            behind = (behind + piece)[-len(self._newline) :]
        self.byte, self.line = byte, line
        # The bytes of a line feed may be parts of two characters if it has several.
        is_counted = number == line or len(self._newline) > 1
        return left == 0 and is_counted and behind == self._newline

    def _go_to(self, done: int, digest: list[str], *, is_unchanged: bool) -> None:
        if self._compression is None and self._size is not None and self._size < done:
            self.byte = self._size
            return
        begin = done - done % BLOCK_BYTES if is_unchanged else 0
        unit = len(self._newline)
        if begin and self._compression is None and self._seek(begin - unit):
            self._tail = self._file.read(unit)
        if self._compression is None and self._seek(begin):
            self._accepted.clear()
            self._digest, self.byte = RollingDigest(digest[0] if begin else ""), begin
        self._flush()
        while self.byte < done and (piece := self._file.read(min(BLOCK_BYTES, done - self.byte))):
            self._digest.update(piece)
            self.byte += len(piece)
            self._tail = (self._tail + piece)[-unit:]

    def _seek(self, byte: int) -> bool:
        """Go to a byte. Return False if the file can be read only from its beginning on."""
        try:
            self._file.seek(byte)
        except (OSError, ValueError):
            return False
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._raw.close()
