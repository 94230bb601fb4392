"""The place of a sink's parts: a directory of this machine, or a prefix of an object store."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from worker.sources.location import load_extra, strip_secrets

_LOCAL = re.compile(r"(?:file|local)://(/.*)")


class Directory(Protocol):
    """A place for files, each of which is complete or not there.

    Attributes:
        name: The path, or the URL without secrets.
    """

    name: str

    def make(self) -> None:
        """Make the directory if it does not exist."""

    def put(self, name: str, data: bytes) -> None:
        """Write a file, or replace it. A reader sees all of it or none, and it survives a crash of the machine."""

    def create(self, name: str, data: bytes) -> None:
        """Write a file unless there is one."""

    def get(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is none."""

    def list(self) -> list[str]:
        """Return the names of the files."""

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""


def open_directory(path: str | Path, options: Mapping[str, Any] | None) -> Directory:
    """Return the place at a path or a URL."""
    if (local := _LOCAL.match(str(path))) is not None:
        return _LocalDirectory(Path(local[1]))  # unlike fsspec, it replaces a file at once
    if "://" in str(path):
        return _ObjectPrefix(str(path), options or {})
    return _LocalDirectory(Path(path))


class _LocalDirectory:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = str(path)

    def make(self) -> None:
        self._path.mkdir(parents=True, exist_ok=True)

    def create(self, name: str, data: bytes) -> None:
        draft = f".part-{secrets.token_hex(6)}"
        self.put(draft, data)
        try:
            os.link(self._path / draft, self._path / name)  # unlike a rename, it replaces no file
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not (self._path / name).exists():
                self.put(name, data)
        finally:
            self.delete(draft)

    def put(self, name: str, data: bytes) -> None:
        descriptor, written = tempfile.mkstemp(prefix=".part-", dir=self._path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            Path(written).chmod(0o666 & ~_UMASK)
            Path(written).replace(self._path / name)
        except BaseException:
            Path(written).unlink(missing_ok=True)
            raise
        directory = os.open(self._path, os.O_RDONLY)  # the new name survives a crash too
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def get(self, name: str) -> bytes | None:
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None

    def list(self) -> list[str]:
        return [entry.name for entry in self._path.iterdir()]

    def delete(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)


class _ObjectPrefix:
    """A prefix of an object store. An object becomes visible when its upload is complete."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        fsspec = load_extra("fsspec", "fsspec", strip_secrets(url))
        self._files, path = fsspec.core.url_to_fs(url, **options)
        self._path = path.rstrip("/")
        self.name = strip_secrets(url)

    def make(self) -> None:
        self._files.makedirs(self._path, exist_ok=True)

    def create(self, name: str, data: bytes) -> None:
        if self.get(name) is None:  # not each object store can do both at once
            self.put(name, data)

    def put(self, name: str, data: bytes) -> None:
        self._files.pipe_file(f"{self._path}/{name}", data)

    def get(self, name: str) -> bytes | None:
        try:
            found: bytes = self._files.cat_file(f"{self._path}/{name}")
        except FileNotFoundError:
            return None
        return found

    def list(self) -> list[str]:
        self._files.invalidate_cache()
        try:
            found = self._files.ls(self._path, detail=False)
        except FileNotFoundError:
            return []
        return [each.rstrip("/").rpartition("/")[2] for each in found]

    def delete(self, name: str) -> None:
        try:
            self._files.rm_file(f"{self._path}/{name}")
        except FileNotFoundError:
            return


def _read_umask() -> int:
    umask = os.umask(0)  # it can be read only by setting it
    os.umask(umask)
    return umask


_UMASK = _read_umask()
