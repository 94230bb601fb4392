"""Files to read: a path of this machine, or a URL that fsspec opens."""

from __future__ import annotations

import importlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from worker.errors import LonghaulError, SourceUnavailable, UsageError

#: What file systems of fsspec call the mark of a version.
_MARKS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "created")


def load_extra(module: str, extra: str, purpose: str) -> Any:
    """Return a module of an optional package.

    Args:
        module: The name of the module.
        extra: The extra of `longhaul-worker` that installs it.
        purpose: The words that begin the error.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f'{purpose} needs {module}: install "longhaul-worker[{extra}]" ({error})') from error


class Location:
    """A file: local, or at a URL such as `s3://bucket/key` or `https://host/path`.

    Args:
        path: The path or the URL.
        options: Options for fsspec, such as credentials. They are neither logged nor stored.

    Attributes:
        name: The path, or the URL without user, password and query, which may hold secrets.
    """

    def __init__(self, path: str | Path, options: Mapping[str, Any] | None = None) -> None:
        self._path = str(path)
        self._options = dict(options or {})
        self.is_url = "://" in self._path
        self.name = strip_secrets(self._path) if self.is_url else self._path

    def unavailable(self, error: BaseException, place: str = "") -> LonghaulError:
        """Return the error of a file that cannot be read."""
        if isinstance(error, LonghaulError):
            return error
        reason = getattr(error, "strerror", None) or str(error).replace(self._path, self.name) or type(error).__name__
        return SourceUnavailable(
            f"{self.name} cannot be read{place}: {reason}. Make it readable where this worker runs; the run continues "
            f"with its next attempt"
        )

    def open(self) -> tuple[IO[bytes], int | None, str | None]:
        """Open the file.

        Returns:
            The file; its size in bytes, or None; a text that changes when the file does, or None.

        Raises:
            SourceUnavailable: It cannot be read, or is no file.
        """
        try:
            return self._open_url() if self.is_url else self._open_path()
        except Exception as error:  # a file system of fsspec raises errors of its own
            raise self.unavailable(error) from error

    def _open_path(self) -> tuple[IO[bytes], int | None, str | None]:
        found = Path(self._path).stat()
        if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for its writer
            kind = "a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
            raise SourceUnavailable(f"{self.name} cannot be read: it is {kind}. Give the path of one file")
        file = Path(self._path).open("rb", buffering=1 << 18)  # noqa: SIM115 - the reader closes it
        return file, found.st_size, read_version(found)

    def _open_url(self) -> tuple[IO[bytes], int | None, str | None]:
        fsspec = load_extra("fsspec", "fsspec", self.name)
        files, path = fsspec.core.url_to_fs(self._path, **self._options)
        files.invalidate_cache()
        info = files.info(path)
        if info.get("type") == "directory":
            raise SourceUnavailable(f"{self.name} cannot be read: it is a directory. Give the URL of one file")
        marks = [info[key] for key in _MARKS if key in info]
        size = info.get("size")
        return files.open(path, "rb"), size, f"{size} {marks[0]}" if marks else None


def read_version(found: os.stat_result) -> str:
    """Return a text that changes when a file of this machine does."""
    return f"{found.st_size} {found.st_mtime_ns}"


def strip_secrets(url: str) -> str:
    """Return a URL without user, password, query and fragment."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
