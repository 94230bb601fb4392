"""The jobs that a process knows, by name, and the modules in which they are found."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from worker.errors import RegistrationError, UnknownJob, format_error
from worker.job.definition import Job, describe_place


class Registry(Mapping[str, Job[..., Any]]):
    """Jobs by name."""

    def __init__(self, jobs: Iterable[Job[..., Any]] = ()) -> None:
        self._jobs: dict[str, Job[..., Any]] = {}
        for one in jobs:
            self.add(one)

    def add(self, one: Job[..., Any]) -> None:
        """Add a job.

        Raises:
            RegistrationError: Another function has the same name.
        """
        known = self._jobs.get(one.name)
        if known is not None and known.function is not one.function:
            places = f"{describe_place(known.function)} and {describe_place(one.function)}"
            raise RegistrationError(f"job {one.name!r} is defined twice: in {places}; rename one with @job(name=...)")
        self._jobs[one.name] = one
        self.__dict__.pop("code_version", None)

    @cached_property
    def code_version(self) -> str:
        """A digest of the jobs' code: of their modules' files, and of the functions themselves."""
        digest = hashlib.sha256()
        files: set[str] = set()
        for name, one in sorted(self._jobs.items()):
            function = inspect.unwrap(one.function)
            digest.update(f"{name} {_code_digest(function.__code__)} ".encode())
            files.add(function.__code__.co_filename)
            # A factory, such as those of `worker.maintenance`, is called with other arguments in the job's own module.
            files.add(getattr(sys.modules.get(one.function.__module__), "__file__", None) or "")
        for file in sorted(files - {""}):
            with contextlib.suppress(OSError):
                digest.update(Path(file).read_bytes())
        return digest.hexdigest()[:16]

    def __getitem__(self, name: str) -> Job[..., Any]:
        return self._jobs[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return the job of a name; `default` if there is none."""
        return self._jobs.get(name, default)  # each claimed job calls it: the inherited one raises and catches an error

    def __iter__(self) -> Iterator[str]:
        return iter(self._jobs)

    def __len__(self) -> int:
        return len(self._jobs)

    def find(self, name: str) -> Job[..., Any]:
        """Return the job of a name.

        Raises:
            UnknownJob: There is none; the message names the most similar one.
        """
        if name in self._jobs:
            return self._jobs[name]
        near = difflib.get_close_matches(name, self._jobs, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(self._jobs)) or 'none'}"
        raise UnknownJob(f"there is no job {name!r}{hint}")


def _code_digest(code: CodeType) -> str:
    """Return a digest of a function's code and of the functions inside it."""
    parts = [code.co_code.hex(), repr(code.co_names)]
    parts += [_code_digest(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return hashlib.sha256("\n".join(parts).encode(errors="backslashreplace")).hexdigest()


def discover(packages: Iterable[str]) -> Registry:
    """Import packages with all their modules. Returns the jobs that these define.

    Raises:
        RegistrationError: A module cannot be imported, a job is defined twice, or a type cannot be converted to JSON.
    """
    registry = Registry()
    for package in packages:
        for module in _modules(package):
            for value in vars(module).values():
                if isinstance(value, Job) and value.function.__module__ == module.__name__:
                    registry.add(value)
    for one in registry.values():
        one.codec.check()
    return registry


def _modules(package: str) -> Iterator[ModuleType]:
    root = _import(package)
    yield root
    for found in pkgutil.walk_packages(getattr(root, "__path__", []), prefix=f"{package}."):
        if not found.name.endswith(".__main__"):
            yield _import(found.name)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise RegistrationError(
                f"worker.packages: there is no package {name!r}; start the worker in the project's folder, or "
                f"correct worker.packages"
            ) from None
        raise _import_error(name, error) from error
    except (RegistrationError, KeyboardInterrupt):
        raise
    except BaseException as error:  # also SystemExit, or the CancelledError of a loop that the module ran
        raise _import_error(name, error) from error


def _import_error(name: str, error: BaseException) -> RegistrationError:
    """Return the error of a module that cannot be imported, with the line of the user's code that raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith("<") and frame.filename != __file__]
    own = [frame for frame in own if frame.filename != importlib.__file__]
    place = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return RegistrationError(f"module {name} cannot be imported: {format_error(error)}{place}")
