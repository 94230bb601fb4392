"""An environment in which the wheel is installed beside some distributions alone, without an index of packages."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def build_wheel(folder: Path, source: Path = ROOT) -> Path:
    """Build the wheel of a tree, without a network."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


def resolve(requirements: Iterable[str], extras: Iterable[str] = ()) -> set[str]:
    """Return the names of all distributions that requirements need, by the metadata of those that are installed.

    Args:
        requirements: lines of `Requires-Dist`.
        extras: the extras of the distribution that has these requirements.
    """
    found: set[str] = set()
    waiting = [(Requirement(line), tuple(extras)) for line in requirements]
    while waiting:
        requirement, chosen = waiting.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": one}) for one in ("", *chosen)):
            continue
        name = canonicalize_name(requirement.name)
        inner = tuple(sorted(requirement.extras))
        if name in found and not inner:
            continue
        found.add(name)
        waiting += [(Requirement(line), inner) for line in distribution(name).requires or ()]
    return found


def make_environment(folder: Path, wheel: Path, names: Iterable[str]) -> Path:
    """Make a virtual environment with a wheel and these distributions of the tests' environment, and no others."""
    venv.create(folder, with_pip=True)
    [packages] = folder.glob("lib/python*/site-packages")
    for name in names:
        try:
            _link(distribution(name), packages)
        except PackageNotFoundError:
            continue  # of another platform
    command = [folder / "bin/python", "-m", "pip", "install", "--no-deps", "--no-index", "-q", wheel]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def _link(one: Distribution, packages: Path) -> None:
    """Link the files of a distribution into another environment."""
    for part in {file.parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
        if not (packages / part).exists():
            (packages / part).symlink_to(Path(str(one.locate_file(part))))
